"""From trials to a point for each case, and from ours to what a limit of memory allows. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from benchmarks.frontier.cases import OURS, PLAIN
from benchmarks.spill.results import Trial

ALIKE = 1e-3
"""Losses (nats a token) that differ by less are equal: other orders of adding up."""


@dataclass(frozen=True, slots=True)
class Point:
    """One case over its good repetitions: medians.

    `memory` is in bytes, of all ranks together, beyond what interpreter and libraries take. `of_limit` is to as many
    times plain PyTorch's throughput as there are ranks, within each repetition; `loss_off` the largest difference of
    any step's loss from plain PyTorch's. None where plain PyTorch wasn't measured.
    """

    engine: str
    case: str
    runs: int
    memory: float
    tokens_per_second: float
    slowest: float
    quickest: float
    of_limit: float | None
    loss_off: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best of ours in no more memory than the peer takes; None where ours takes more in any case."""

    peer: Point
    ours: Point | None

    @property
    def times(self) -> float | None:
        """Ours to the peer in throughput."""
        return None if self.ours is None else self.ours.tokens_per_second / self.peer.tokens_per_second


def points(trials: Sequence[Trial], ranks: int) -> list[Point]:
    """One for each case that has a trial without an error, in the order of the first of them."""
    good = [trial for trial in trials if not trial.error]
    plain = {trial.repetition: trial for trial in good if trial.case == PLAIN}
    cases = dict.fromkeys(trial.case for trial in good)
    return [_point([trial for trial in good if trial.case == case], plain, ranks) for case in cases]


def _point(own: Sequence[Trial], plain: dict[int, Trial], ranks: int) -> Point:
    speeds = [trial.tokens_per_second for trial in own]
    paired = [(trial, plain[trial.repetition]) for trial in own if trial.repetition in plain]
    parts = [trial.tokens_per_second / (ranks * one.tokens_per_second) for trial, one in paired]
    off = [_apart(*losses) for trial, one in paired for losses in zip(trial.losses, one.losses, strict=True)]
    return Point(
        engine=own[0].part,
        case=own[0].case,
        runs=len(own),
        memory=median(trial.memory - trial.baseline for trial in own),
        tokens_per_second=median(speeds),
        slowest=min(speeds),
        quickest=max(speeds),
        of_limit=median(parts) if parts else None,
        loss_off=max(off, default=None),
    )


def _apart(loss: float, expected: float) -> float:
    """Infinitely far where one is not a number."""
    apart = abs(loss - expected)
    return math.inf if math.isnan(apart) else apart


def best_within(found: Sequence[Point], limit: float) -> Point | None:
    """The quickest that takes at most `limit` bytes; None where all take more."""
    fitting = [point for point in found if point.memory <= limit]
    return max(fitting, key=lambda point: point.tokens_per_second, default=None)


def frontier(found: Sequence[Point]) -> list[tuple[float, float]]:
    """Bytes, and the tokens/s that so many allow: each point adds what it takes, and is no slower than those before."""
    rising = sorted((point.memory, point.tokens_per_second) for point in found)
    best = accumulate((speed for _, speed in rising), max)
    return [(memory, speed) for (memory, _), speed in zip(rising, best, strict=True)]


def verdicts(found: Sequence[Point]) -> list[Verdict]:
    """One for each peer."""
    ours = [point for point in found if point.engine == OURS]
    peers = [point for point in found if point.engine not in (OURS, PLAIN)]
    return [Verdict(peer, best_within(ours, peer.memory)) for peer in peers]


def different(found: Sequence[Point]) -> list[str]:
    """Cases whose losses aren't plain PyTorch's."""
    return [point.case for point in found if point.loss_off is not None and point.loss_off >= ALIKE]
