"""From what the ranks report to one trial's figures, and from all of them to medians and fractions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.checkpoint.drive import Limit
from benchmarks.checkpoint.names import ASYNCHRONOUS, OURS, WITHIN
from benchmarks.measure.over_ranks import peak_of_sum


@dataclass(frozen=True, slots=True)
class Save:
    """One checkpoint, in seconds of the slowest rank.

    `stall`: training stood still; `slowed`: the steps while it was written took longer in all, beyond their part of
    that; `durable`: from the call until everything was written and synced.
    """

    stall: float
    slowed: float
    durable: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One way in one repetition, or why it failed. Bytes and seconds, of all ranks together.

    `straight`: the drive alone for the files of each of `loads`; `training`, `saving` and `loading` are peaks of the
    summed PSS; `off` is the difference of two losses.
    """

    way: str
    repetition: int = 0
    error: str = ""
    others: float = 0.0
    parameters: int = 0
    step_seconds: list[float] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    bytes: int = 0
    loads: list[float] = field(default_factory=list)
    straight: list[float] = field(default_factory=list)
    off: float = 0.0
    training: int = 0
    saving: int = 0
    loading: int = 0


def figures(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a Trial that the ranks' `reports` give."""
    step_seconds = reports[0]["steps"]["step_seconds"]
    return {
        "parameters": reports[0]["parameters"],
        "step_seconds": step_seconds,
        "saves": [
            _save(ranks, median(step_seconds)) for ranks in zip(*(each["saved"] for each in reports), strict=True)
        ],
        "bytes": reports[0]["bytes"],
        "loads": [max(ranks) for ranks in zip(*(each["loads"] for each in reports), strict=True)],
        "straight": reports[0]["straight"],
        "off": max(each["off"] for each in reports),
        "training": peak_of_sum([each["steps"]["memory"] for each in reports]),
        "saving": peak_of_sum([each["saving"] for each in reports]),
        "loading": peak_of_sum([each["loading"] for each in reports]),
    }


def _save(ranks: Sequence[dict[str, Any]], usual: float) -> Save:
    return Save(
        stall=max(rank["stall"] + rank["stood"] for rank in ranks),
        slowed=max(sum(step - usual for step in rank["steps"]) for rank in ranks)
        - max(rank["stood"] for rank in ranks),
        durable=max(rank["finished"] for rank in ranks) + max(rank["synced"] for rank in ranks),
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """One way: medians over all its checkpoints, and over its repetitions.

    `of_step`: the stall in steps; `of_write`: of the drive's rate in the same repetition; `of_read`: what the drive
    alone took just before, of what the load took; `more_saving`, `more_loading`: bytes beyond training's; `to_async`:
    the stall over that of DCP's asynchronous way.
    """

    way: str
    saves: int
    step: float
    stall: float
    longest: float
    of_step: float
    slowed: float
    durable: float
    bytes: float
    write: float
    of_write: float
    load: float
    read: float
    of_read: float
    more_saving: float
    more_loading: float
    off: float
    to_async: float | None


def summarize(trials: Sequence[Trial], limits: Sequence[Limit]) -> list[Summary]:
    """A summary for each way that has trials without an error; `limits` has one of each repetition."""
    good = [trial for trial in trials if not trial.error]
    stalls = {way: _stall(_of(way, good)) for way in dict.fromkeys(trial.way for trial in good)}
    return [_summary(_of(way, good), limits, stalls.get(ASYNCHRONOUS)) for way in stalls]


def _of(way: str, trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.way == way]


def _stall(trials: Sequence[Trial]) -> float:
    return median(save.stall for trial in trials for save in trial.saves)


def _summary(trials: Sequence[Trial], limits: Sequence[Limit], asynchronous: float | None) -> Summary:
    saves = [(save, trial) for trial in trials for save in trial.saves]
    loads = [(*pair, trial) for trial in trials for pair in zip(trial.loads, trial.straight, strict=True)]
    step = median(seconds for trial in trials for seconds in trial.step_seconds)
    stall = _stall(trials)
    return Summary(
        way=trials[0].way,
        saves=len(saves),
        step=step,
        stall=stall,
        longest=max(save.stall for save, _ in saves),
        of_step=stall / step,
        slowed=median(save.slowed for save, _ in saves),
        durable=median(save.durable for save, _ in saves),
        bytes=median(trial.bytes for trial in trials),
        write=median(trial.bytes / save.durable for save, trial in saves),
        of_write=median(trial.bytes / save.durable / limits[trial.repetition].write for save, trial in saves),
        load=median(load for load, _, _ in loads),
        read=median(trial.bytes / load for load, _, trial in loads),
        of_read=median(straight / load for load, straight, _ in loads),
        more_saving=median(max(0, trial.saving - trial.training) for trial in trials),
        more_loading=median(max(0, trial.loading - trial.training) for trial in trials),
        off=max(trial.off for trial in trials),
        to_async=None if asynchronous is None else stall / asynchronous,
    )


def problem(trials: Sequence[Trial]) -> str:
    """What is wrong with ours: it failed, or training didn't go on from the checkpoint as it had; empty where fine."""
    for trial in (*_of(OURS, trials), *_of(WITHIN, trials)):
        if trial.error:
            return f"{trial.way} failed: {trial.error}"
        if trial.off:
            return f"after loading, {trial.way} has a loss that is off by {trial.off:.1e}"
    return ""
