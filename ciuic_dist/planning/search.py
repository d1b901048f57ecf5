"""The best way to train within the budgets: choices are forecast by one cost model, and the quickest kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heappop, heappush

from ciuic_dist.planning.choices import Limits, ProfileOf, choices
from ciuic_dist.planning.forecast import DoesNotFit, Forecast, failure, in_memory
from ciuic_dist.planning.lanes import least_seconds
from ciuic_dist.planning.look import Found, glance
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.refine import refined
from ciuic_dist.planning.spilling import with_transfers
from ciuic_dist.planning.training import Choice, Training

_EQUAL = 0.005
"""Choices whose times differ by less are taken for equally quick: the one that moves and holds least is kept."""
_ROUNDING = 1e-9
"""By which part sums may differ that are taken in another order."""
PLAYED = 24
"""So many choices that spill are played, the most promising ones: each takes a while."""


def search(
    profile_of: ProfileOf, machine: Machine, training: Training, limits: Limits | None = None, *, most: int = PLAYED
) -> Found:
    """The quickest choice that fits. Raises DoesNotFit with the least that would, ValueError where there is no choice.

    Of equally quick ones the one that moves least between tiers and ranks, then the one that takes least memory.
    ``most``: so many of those that spill are played.
    """
    limits = limits or Limits()
    tried = list(choices(profile_of, machine, training, limits))
    if not tried:
        raise ValueError(f"{limits} leave nothing to choose from")
    played = list(_quickest(tried, profile_of, machine, training, most))
    if not played:
        raise _nearest([failure(profile_of(c.micro_batch), machine, training, c) for c in tried])
    quickest = min(found.forecast.seconds for found in played)
    best = min((found for found in played if found.forecast.seconds <= quickest * (1 + _EQUAL)), key=_moves)
    return best if limits.way else refined(best, profile_of, machine, training)


def _moves(found: Found) -> tuple[float, int]:
    forecast = found.forecast
    return forecast.up + forecast.down + forecast.sent, forecast.device


def _nearest(failures: list[DoesNotFit]) -> DoesNotFit:
    """The least that would do for any of them."""
    nearest = min(failures, key=lambda failure: math.inf if failure.device is None else failure.device)
    below = [failure.below for failure in failures if failure.below is not None]
    return DoesNotFit(nearest.device, min(below, default=None), nearest.needs)


def _quickest(
    tried: list[Choice], profile_of: ProfileOf, machine: Machine, training: Training, most: int
) -> Iterator[Found]:
    """Choices with their transfers played, as long as any that is left might be quicker, up to a number."""
    best, played = math.inf, 0
    for choice, expected in _fitting(tried, profile_of, machine, training):
        if expected.seconds > best * (1 + _EQUAL) or played == most:
            return
        played += expected.spilled.total > 0
        found = with_transfers(profile_of(choice.micro_batch), machine, training, choice, expected)
        best = min(best, found.seconds)
        yield Found(choice, found)


def _fitting(
    tried: list[Choice], profile_of: ProfileOf, machine: Machine, training: Training
) -> Iterator[tuple[Choice, Forecast]]:
    """Those that fit, the quickest first. A choice is forecast once none that was may be quicker than its passes."""
    waiting: list[tuple[float, int, Forecast]] = []
    least = (least_seconds(profile_of(c.micro_batch), machine, training, c) * (1 - _ROUNDING) for c in tried)
    for seconds, index in sorted(zip(least, range(len(tried)), strict=True)):
        while waiting and waiting[0][0] < seconds:
            yield _next(waiting, tried)
        found = glance(tried[index], profile_of, machine, training)
        if found:
            heappush(waiting, (found.seconds, index, found))
    while waiting:
        yield _next(waiting, tried)


def _next(waiting: list[tuple[float, int, Forecast]], tried: list[Choice]) -> tuple[Choice, Forecast]:
    _, index, found = heappop(waiting)
    return tried[index], found


def in_memory_seconds(
    profile_of: ProfileOf, machine: Machine, training: Training, limits: Limits | None = None
) -> float:
    """Of the best step if the devices had memory to spare."""
    return search(profile_of, in_memory(machine), training, limits).forecast.seconds
