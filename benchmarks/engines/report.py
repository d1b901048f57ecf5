"""What a reader sees: the configuration, one table, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines.results import Run, Summary
from benchmarks.measure.machine import in_words
from benchmarks.measure.record import markdown, reason
from benchmarks.measure.setting import Setting

_COLUMNS = (
    "engine",
    "tokens/s: median (min..max)",
    "of the limit",
    "ours / it in tokens/s",
    "loss",
    "loss - plain",
    "{memory}, MB",
    "ours / it in memory",
    "peak RSS of a rank, MB",
    "runs",
)


def configuration(setting: Setting, machine: dict[str, Any], runs: Sequence[Run]) -> str:
    """The lines above the table."""
    where = {"1": "one host", "2": "two hosts (network namespaces)", "forced": "one host, no shared memory in ours"}
    masters = " with fp32 masters (plain and DDP: autocast)" if setting.dtype == "bf16" else ""
    parameters = max((run.parameters for run in runs), default=0) / 1e6
    accelerator = max((run.accelerator for run in runs), default="")
    computer = f"{accelerator} beside {machine['processor']}" if accelerator else machine["processor"]
    busiest = max((run.others for run in runs), default=0.0)
    return f"""\
* {setting.model} {setting.size}, {parameters:.1f} M parameters, {setting.dtype}{masters}, stage {setting.stage}
* {setting.device}, ranks of one thread: {setting.ranks}, {where[setting.hosts]}
* {setting.batch} sequences of {setting.sequence} tokens a step; {setting.steps} steps timed after {setting.warmup}, \
one more sampled for memory; fused AdamW, seed {setting.seed}
{in_words(machine | {"processor": computer})}
* other processes kept at most {busiest:.2f} cores busy during a run
* the limit is linear scaling: ranks times the tokens/s of plain PyTorch in one process of one thread
"""


def table(summaries: Sequence[Summary], runs: Sequence[Run], setting: Setting) -> str:
    """Markdown; the limit in its last line. Engines that failed have the reason."""
    memory = "peak GPU memory" if setting.device == "cuda" else "peak memory of a host (sum of PSS)"
    titles = [title.format(memory=memory) for title in _COLUMNS]
    rows = [_row(summary) for summary in summaries]
    plain = next((summary for summary in summaries if summary.engine == "plain"), None)
    if plain:
        limit = f"{setting.ranks * plain.tokens_per_second:.1f}"
        rows.append(["limit", limit, "100%"])
    rows += ([run.engine, f"failed: {reason(run.error)}"] for run in runs if run.error)
    return markdown(titles, rows)


def _row(summary: Summary) -> list[str]:
    own = summary.engine == "ours"
    return [
        summary.engine,
        f"{summary.tokens_per_second:.1f} ({summary.slowest:.1f}..{summary.quickest:.1f})",
        "" if summary.of_limit is None else f"{summary.of_limit:.0%}",
        "" if summary.faster is None or own else f"{summary.faster:.2f}",
        f"{summary.loss:.6f}",
        "" if summary.loss_difference is None or summary.engine == "plain" else f"{summary.loss_difference:+.1e}",
        f"{summary.memory / 1e6:.0f}",
        "" if summary.leaner is None or own else f"{summary.leaner:.2f}",
        f"{summary.peak_rss / 1e6:.0f}",
        str(summary.runs),
    ]


def plot(summaries: Sequence[Summary], setting: Setting, path: Path) -> None:
    """Throughput against memory, one point an engine, as a PNG at `path`, whose folder is made."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    for summary in summaries:
        across, up = summary.memory / 1e9, summary.tokens_per_second
        spread = [[up - summary.slowest], [summary.quickest - up]]
        axes.errorbar(across, up, yerr=spread, fmt="o", markersize=9 if summary.engine == "ours" else 6, capsize=3)
        axes.annotate(summary.engine, (across, up), xytext=(8, 6), textcoords="offset points")
        if summary.engine == "plain":
            limit = setting.ranks * up
            axes.axhline(limit, linestyle="--", linewidth=1, color="gray")
            axes.annotate("linear scaling", (0, limit), xytext=(4, -12), textcoords="offset points", color="gray")
    axes.set_xlim(left=0, right=1.2 * max(summary.memory for summary in summaries) / 1e9)
    axes.set_ylim(bottom=0)
    axes.set(
        title=f"{setting.model} {setting.size} {setting.dtype}, {setting.ranks} ranks: up and left is better",
        xlabel="peak memory of " + ("all GPUs (GB)" if setting.device == "cuda" else "a host (GB, sum of PSS)"),
        ylabel="tokens/s",
    )
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
