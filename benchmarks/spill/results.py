"""From what the ranks report to one trial's figures, and from those of all repetitions to medians and ratios. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.measure.over_ranks import mean_losses, peak_of_sum
from benchmarks.measure.setting import Setting
from benchmarks.spill.bound import Moves, Rates


@dataclass(frozen=True, slots=True)
class Trial:
    """One case in one repetition, or why it failed. Bytes; where not said otherwise, of all ranks together.

    `memory` is the peak of the ranks' summed PSS, `baseline` that sum before there was a model, `peak_rss` of one rank.
    `disk_read`, `disk_written` and `links` are of one step. `device_peak`, `device_budget`, `transient` and
    `stall_seconds` (of one step) are the fullest or slowest rank's. `faults` and `unforeseen` are of all timed steps.
    """

    part: str
    case: str
    repetition: int = 0
    error: str = ""
    others: float = 0.0
    parameters: int = 0
    tokens_per_second: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    memory: int = 0
    peak_rss: int = 0
    baseline: int = 0
    disk_read: float = 0.0
    disk_written: float = 0.0
    device_budget: int | None = None
    device_peak: int = 0
    transient: int = 0
    page_bytes: int = 0
    links: dict[str, float] = field(default_factory=dict)
    stall_seconds: float = 0.0
    faults: int = 0
    unforeseen: int = 0
    hit_rate: float = 1.0
    limit: int | None = None
    charged: int = 0
    kills: int = 0

    @property
    def seconds(self) -> float:
        """Of the median step."""
        return median(self.step_seconds)


def figures(setting: Setting, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a Trial that the ranks' `reports` give."""
    steps = [report["steps"] for report in reports]
    step_seconds = steps[0]["step_seconds"]
    spilled = [report["spilled"] for report in reports if report["spilled"]]
    return {
        "parameters": reports[0]["parameters"],
        "tokens_per_second": setting.tokens / median(step_seconds),
        "step_seconds": step_seconds,
        "losses": mean_losses([rank["losses"] for rank in steps]),
        "memory": peak_of_sum([rank["memory"] for rank in steps]),
        "peak_rss": max(report["peak_rss"] for report in reports),
        "baseline": sum(report["baseline"] for report in reports),
        "device_peak": max(report["device_peak"] for report in reports),
        "disk_read": sum(report["disk_read"] for report in reports) / setting.steps,
        "disk_written": sum(report["disk_written"] for report in reports) / setting.steps,
    } | (_moves(setting, spilled) if spilled else {})


def _moves(setting: Setting, spilled: Sequence[dict[str, Any]]) -> dict[str, Any]:
    links: Counter[str] = Counter()
    for rank in spilled:
        links.update(rank["links"])
    accesses = sum(rank["accesses"] for rank in spilled)
    return {
        "transient": max(rank["transient"] for rank in spilled),
        "page_bytes": spilled[0]["page_bytes"],
        "links": {name: nbytes / setting.steps for name, nbytes in links.items()},
        "stall_seconds": max(rank["stall_seconds"] for rank in spilled) / setting.steps,
        "faults": sum(rank["faults"] for rank in spilled),
        "unforeseen": sum(rank["unforeseen"] for rank in spilled),
        "hit_rate": sum(rank["hits"] for rank in spilled) / accesses if accesses else 1.0,
    }


@dataclass(frozen=True, slots=True)
class Summary:
    """One case over its good repetitions: medians, and medians of ratios taken within each repetition.

    `bound` is the least seconds of a step, None without rates; `of_bound` it over the measured seconds;
    `of_unspilled` this case's tokens/s over those of the case that spills nothing.
    """

    case: str
    runs: int
    last: Trial
    tokens_per_second: float
    slowest: float
    quickest: float
    seconds: float
    stall_seconds: float
    memory: float
    of_unspilled: float | None = None
    bound: float | None = None
    of_bound: float | None = None


def summarize(
    trials: Sequence[Trial], ranks: int, unspilled: str | None = None, rates: Sequence[Rates] = ()
) -> list[Summary]:
    """A summary for each case that has trials without an error. ``rates``: measured in each repetition, in order."""
    good = [trial for trial in trials if not trial.error]
    references = {trial.repetition: trial for trial in good if trial.case == unspilled}
    return [
        _summary([trial for trial in good if trial.case == case], ranks, references, rates)
        for case in dict.fromkeys(trial.case for trial in good)
    ]


def _summary(own: Sequence[Trial], ranks: int, references: dict[int, Trial], rates: Sequence[Rates]) -> Summary:
    speeds = [trial.tokens_per_second for trial in own]
    ratios = [
        trial.tokens_per_second / references[trial.repetition].tokens_per_second
        for trial in own
        if trial.repetition in references
    ]
    bounds = [
        (bound(trial, ranks, rates[trial.repetition], references[trial.repetition].seconds), trial.seconds)
        for trial in own
        if trial.repetition in references and trial.repetition < len(rates)
    ]
    return Summary(
        case=own[0].case,
        runs=len(own),
        last=own[-1],
        tokens_per_second=median(speeds),
        slowest=min(speeds),
        quickest=max(speeds),
        seconds=median(trial.seconds for trial in own),
        stall_seconds=median(trial.stall_seconds for trial in own),
        memory=median(trial.memory for trial in own),
        of_unspilled=median(ratios) if ratios else None,
        bound=median(least for least, _ in bounds) if bounds else None,
        of_bound=median(least / seconds for least, seconds in bounds) if bounds else None,
    )


def bound(trial: Trial, ranks: int, rates: Rates, computing: float) -> float:
    """Least seconds of the trial's step; a device that has no budget has room for everything."""
    if trial.device_budget is None:
        return computing
    room = ranks * max(0, trial.device_budget - trial.transient)
    return Moves.least(trial.parameters, room).seconds(rates, computing)


def unequal(trials: Sequence[Trial]) -> list[str]:
    """Cases whose losses are not, to the last bit, those of the first good trial."""
    good = [trial for trial in trials if not trial.error]
    return sorted({trial.case for trial in good if trial.losses != good[0].losses})
