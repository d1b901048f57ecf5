"""From what the ranks report to one run's figures, and from those of all repetitions to medians and ratios. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.measure.over_ranks import mean_losses, peak_of_sum
from benchmarks.measure.setting import Setting


@dataclass(frozen=True, slots=True)
class Run:
    """One engine in one repetition.

    `losses` are means over the ranks, one a step; `memory` is the peak of the fullest host (summed PSS of its ranks),
    or of all GPUs; both memories are in bytes. `others` is the number of cores that other processes kept busy.
    """

    engine: str
    repetition: int
    tokens_per_second: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    memory: int = 0
    peak_rss: int = 0
    parameters: int = 0
    accelerator: str = ""
    others: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """One engine over all repetitions; None where there is nothing to compare with.

    Ratios are medians of those within each repetition: `of_limit` is to as many times plain PyTorch's throughput as
    there are ranks, `faster` and `leaner` are ours to this engine in throughput and in memory.
    """

    engine: str
    runs: int
    tokens_per_second: float
    slowest: float
    quickest: float
    of_limit: float | None
    faster: float | None
    leaner: float | None
    loss: float
    loss_difference: float | None
    memory: float
    peak_rss: float


def run_of(
    engine: str, repetition: int, setting: Setting, reports: Sequence[dict[str, Any]], *, hosts: int, others: float
) -> Run:
    """The figures of one run whose ranks, in order, left `reports`."""
    steps = [report["steps"] for report in reports]
    step_seconds = steps[0]["step_seconds"]
    per_host = max(1, len(reports) // hosts)
    memories = [rank["memory"] for rank in steps]
    on_hosts = [memories[first : first + per_host] for first in range(0, len(reports), per_host)]
    return Run(
        engine=engine,
        repetition=repetition,
        tokens_per_second=setting.tokens / median(step_seconds),
        step_seconds=step_seconds,
        losses=mean_losses([rank["losses"] for rank in steps]),
        memory=max(peak_of_sum(host) for host in on_hosts),
        peak_rss=max(report["peak_rss"] for report in reports),
        parameters=reports[0]["parameters"],
        accelerator=reports[0]["accelerator"],
        others=others,
    )


def summarize(runs: Sequence[Run], ranks: int) -> list[Summary]:
    """A summary for each engine that has runs without an error, in the order of the first repetition."""
    good = {(run.engine, run.repetition): run for run in runs if not run.error}
    return [_summary(engine, good, ranks) for engine in dict.fromkeys(engine for engine, _ in good)]


def _summary(engine: str, runs: dict[tuple[str, int], Run], ranks: int) -> Summary:
    own = [run for (name, _), run in runs.items() if name == engine]

    def paired(other: str, compare: Callable[[Run, Run], float]) -> float | None:
        """Median over the repetitions of a comparison of this engine's run with the other's."""
        values = [compare(run, runs[other, run.repetition]) for run in own if (other, run.repetition) in runs]
        return median(values) if values else None

    speeds = [run.tokens_per_second for run in own]
    return Summary(
        engine=engine,
        runs=len(own),
        tokens_per_second=median(speeds),
        slowest=min(speeds),
        quickest=max(speeds),
        of_limit=paired("plain", lambda run, plain: run.tokens_per_second / (ranks * plain.tokens_per_second)),
        faster=paired("ours", lambda run, ours: ours.tokens_per_second / run.tokens_per_second),
        leaner=paired("ours", lambda run, ours: ours.memory / run.memory),
        loss=own[-1].losses[-1],
        loss_difference=paired("plain", lambda run, plain: run.losses[-1] - plain.losses[-1]),
        memory=median(run.memory for run in own),
        peak_rss=median(run.peak_rss for run in own),
    )
