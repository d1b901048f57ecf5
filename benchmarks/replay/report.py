"""What a reader sees: the configuration, a table, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.replay.cases import H100, Record
from ciuic_dist.planning.simulate import Outcome

PEERS = ("LRU", "FIFO", "LFU", "LRU + look-ahead", "LFU + look-ahead", "Markov-1", "Markov-2")
GOAL = 1.03
"""Of the bound."""


def configuration() -> str:
    """The lines above the table."""
    return f"""\
# Replay of one training step

* Simulated, not measured: one device with {H100.flops / 1e12:.0f} TFLOP/s, {H100.bandwidth / 1e12:.2f} TB/s, \
{H100.up / 1e9:.0f} GB/s up and {H100.down / 1e9:.0f} GB/s down at once.
* Traces: FLOPs and saved activations from fake tensors, bf16 weights, 10 bytes of state a parameter; causal masks \
not deducted. A step is one forward and backward of all its tokens; each unit is updated, page by page, as soon as \
its gradient is complete (fused), or all after the backward (two-phase).
* Budget: 80 GB, or ("half") what activations need and half of the bytes of all parameters and states, which may \
be more than a real device has. What activations and one unit's \
gradient need at the peak is taken off first.
* s: seconds a step in the steady state. The bound is a linear program that no schedule can beat; a step that is \
not within {GOAL - 1:.0%} of it is marked (!). misses: uses of something that was not there when its operation came up.
* MIN is Belady's rule without fetching ahead: the fewest misses on demand where items are equally large (here nearly).
* Ours is what the engine does: a set that stays, evenly spread, and a ring that the rest goes through. best: of about \
two dozen candidates (rings of other sizes, all of it a ring, writing back late or early), picked after playing all.
* Mixtral: with this many tokens all experts of a layer are used in every step, so it counts as dense.
* Each peer has the better of two windows, exact knowledge of the future where it looks ahead, and tables learned \
from this very trace; LRU, FIFO and LFU by themselves fetch on demand. Parameters alone are a palindrome, on which \
LRU is as good as MIN: what LRU loses here it loses on the optimizer's state, which is a scan.
"""


def table(records: Sequence[Record]) -> str:
    """Markdown, a line a step that spills; then the steps that don't."""
    titles = [
        "step",
        "budget, GB",
        "room, GB of",
        "compute",
        "bound",
        "ours",
        "/ bound",
        "best / bound",
        "misses: ours",
        "misses: MIN",
        "misses: LRU",
        *PEERS,
    ]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    rows += [_row(record, record.ours) for record in records if record.ours]
    left = [f"* {name(record)}: {record.failure}" for record in records if not record.ours]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(["Not replayed:", "", *left] if left else [])])


def summary(records: Sequence[Record]) -> str:
    """How far from the bound, and from each peer."""
    shown = [record for record in records if record.ours and record.bound]
    over = [record.ours.seconds / record.bound for record in shown if record.ours and record.bound]
    best = [record.best.seconds / record.bound for record in shown if record.best and record.bound]
    within, worst = sum(value <= GOAL for value in over), max(over)
    lines = [
        f"{within} of {len(over)} steps are within {GOAL - 1:.0%} of the bound.",
        f"The median step takes {median(over):.3f} times the bound, the worst {worst:.3f} times.",
        f"The best candidate is within {GOAL - 1:.0%} on {sum(value <= GOAL for value in best)}.",
    ]
    for peer in PEERS:
        ratios = [record.others[peer].seconds / record.ours.seconds for record in shown if record.ours]
        lines.append(f"{peer} takes {min(ratios):.2f} to {max(ratios):.2f} times as long as ours.")
    return "\n".join(f"* {line}" for line in lines) + "\n"


def name(record: Record) -> str:
    """The step in a few words."""
    setting = record.setting
    parts = [setting.model, f"{setting.tokens} tokens", "80 GB" if setting.share is None else "half"]
    parts += ["checkpointing"] * setting.checkpointing + ["two-phase"] * (not setting.fused)
    return ", ".join(parts)


def _row(record: Record, ours: Outcome) -> list[str]:
    assert record.bound is not None
    over = ours.seconds / record.bound
    return [
        name(record),
        f"{(record.room + record.transient) / 1e9:.1f}",
        f"{record.room / 1e9:.1f} of {record.items / 1e9:.1f}",
        f"{record.compute:.3f}",
        f"{record.bound:.3f}",
        f"**{ours.seconds:.3f}**",
        f"{over:.3f}" + (" (!)" if over > GOAL else ""),
        "" if record.best is None else f"{record.best.seconds / record.bound:.3f}",
        f"{ours.misses:.0f}",
        f"{record.others['MIN'].misses:.0f}",
        f"{record.others['LRU'].misses:.0f}",
        *(f"{record.others[peer].seconds:.3f}" for peer in PEERS),
    ]


def plot(records: Sequence[Record], path: Path) -> None:
    """Step time over the bound, a group of points a step, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [record for record in records if record.ours and record.bound]
    figure = Figure(figsize=(9, 0.28 * len(shown) + 1.8), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    rows = range(len(shown))
    for peer, marker in zip(PEERS, "osdv^<>", strict=True):
        over = [record.others[peer].seconds / record.bound for record in shown if record.bound]
        axes.plot(over, rows, marker, label=peer, markersize=5, alpha=0.6)
    ours = [record.ours.seconds / record.bound for record in shown if record.ours and record.bound]
    axes.plot(ours, rows, "k*", label="ours", markersize=9)
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(rows, [name(record) for record in shown], fontsize=7)
    axes.set(xlabel="step time / lower bound (simulated)", xscale="log")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)
