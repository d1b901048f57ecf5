"""A picture of a plan: a step in time, on one axis for what computes, what moves and where the bytes lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ciuic_dist.monitor.units import duration_text, size_text
from ciuic_dist.planning.levels import Levels
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.schedule import ACTIVATIONS, BUFFERS, Schedule, schedule
from ciuic_dist.planning.timeline import Span, Transfer
from ciuic_dist.planning.trace import Kind

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_GIB = 1 << 30
_COMPUTING = {"forward": "tab:blue", "backward": "tab:orange", "update": "tab:green"}
_WAITING, _COLLECTIVE = "gainsboro", "tab:purple"
_HELD = {
    BUFFERS: ("buffers", "tab:gray"),
    Kind.STATE: ("optimizer state", "tab:olive"),
    Kind.PARAMETER: ("parameters", "tab:cyan"),
    Kind.GRADIENT: ("gradients", "tab:red"),
    ACTIVATIONS: ("activations", "tab:pink"),
}
"""From the bottom up."""
_TIERS = {"device": "device memory", "host": "host memory", "nvme": "NVMe"}


def draw(plan: Plan, profile: Profile, path: Path) -> None:
    """Write a PNG: the last micro-batch and the update on one rank, and what each tier holds meanwhile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = schedule(profile, plan.machine, plan.training, plan.choice)
    rows, peaks = _rows(drawn), plan.predicted.peak
    heights = (0.6 + 0.45 * len(rows), *(2.6 if tier == "device" else 1.6 for tier in peaks))
    figure = Figure(figsize=(13, 1.2 + sum(heights)), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_rows(axes[0], rows)
    for ax, (tier, peak) in zip(axes[1:], peaks.items(), strict=True):
        _draw_levels(ax, drawn.timeline.seconds, _held(drawn, peaks, tier), peak)
        ax.set_title(_TIERS[tier], loc="left", fontsize="medium")
    axes[-1].set(xlabel="seconds", xlim=(0, drawn.timeline.seconds))
    figure.suptitle(_title(plan, drawn))
    draft = path.with_name(path.name + ".partial")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(path)


def _title(plan: Plan, drawn: Schedule) -> str:
    step = f"{plan.model} on {plan.machine.name}: a step of {duration_text(plan.predicted.seconds)} on one rank"
    many = f", the last of {plan.accumulation} micro-batches and the update" if plan.accumulation > 1 else ""
    return step + many + (f"\n{drawn.missing} between tiers are not drawn" if drawn.missing else "")


_Bars = dict[str, list[tuple[float, float]]]
"""From when on and how long, by colour."""


def _rows(drawn: Schedule) -> dict[str, _Bars]:
    """What there is to draw, from top to bottom."""
    found = {"computation": _computing(drawn.timeline.ops)}
    for name, spans in (("gathers", drawn.gathers), ("reductions", drawn.reductions)):
        found[name] = {_COLLECTIVE: [(s.start, s.end - s.start) for s in spans]}
    for name, up in (("to the device", True), ("from the device", False)):
        transfers = [t for t in drawn.timeline.transfers if t.up is up]
        found[f"{name}\n{size_text(sum(t.nbytes for t in transfers))}"] = _moving(transfers)
    return {name: bars for name, bars in found.items() if any(bars.values())}


def _computing(ops: Iterable[Span]) -> _Bars:
    bars: _Bars = {}
    now = 0.0
    for op in ops:
        if op.start > now:
            bars.setdefault(_WAITING, []).append((now, op.start - now))
        now = op.end
        bars.setdefault(_COMPUTING[op.name.partition(" ")[0]], []).append((op.start, op.end - op.start))
    return bars


def _moving(transfers: Iterable[Transfer]) -> _Bars:
    bars: _Bars = {}
    for transfer in transfers:
        bars.setdefault(_HELD[transfer.item.kind][1], []).append((transfer.start, transfer.end - transfer.start))
    return bars


def _draw_rows(ax: Axes, rows: dict[str, _Bars]) -> None:
    from matplotlib.patches import Patch

    for row, bars in enumerate(rows.values()):
        for colour, spans in bars.items():
            ax.broken_barh(spans, (row - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.2)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    names = {_WAITING: "waiting", **{colour: name for name, colour in _COMPUTING.items()}, _COLLECTIVE: "collective"}
    names |= {colour: name for name, colour in _HELD.values()}
    used = {colour for bars in rows.values() for colour in bars}
    _legend(ax, [Patch(color=colour, label=name) for colour, name in names.items() if colour in used])


def _held(drawn: Schedule, peaks: dict[str, int], tier: str) -> Levels:
    """Lower tiers share evenly what isn't on the device."""
    if tier == "device":
        return drawn.timeline.device
    share = Fraction(peaks[tier], sum(nbytes for name, nbytes in peaks.items() if name != "device"))
    below = drawn.timeline.below
    return Levels(below.moments, {kind: tuple(int(n * share) for n in held) for kind, held in below.nbytes.items()})


def _draw_levels(ax: Axes, seconds: float, levels: Levels, peak: int) -> None:
    held = {kind: levels.nbytes[kind] for kind in _HELD if kind in levels.nbytes}
    heights = [[nbytes / _GIB for nbytes in (*there, there[-1])] for there in held.values()]
    names, colours = zip(*(_HELD[kind] for kind in held), strict=True)
    stacked = ax.stackplot((*levels.moments, seconds), heights, labels=names, colors=colours, step="post")
    label = f"predicted peak: {size_text(peak)}"
    line = ax.axhline(peak / _GIB, color="black", linestyle="--", linewidth=1, label=label)
    ax.set(ylabel="GiB", ylim=(0, peak / _GIB * 1.08))
    seen = [area for area, there in zip(stacked, held.values(), strict=True) if any(there)]
    _legend(ax, [line, *reversed(seen)])


def _legend(ax: Axes, handles: Sequence[Artist]) -> None:
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)
