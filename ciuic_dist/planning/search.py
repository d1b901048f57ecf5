"""The best way to train within the budgets: every choice is forecast by one cost model, and the quickest kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.forecast import DoesNotFit, Forecast, failure, forecast_if_it_fits, in_memory
from ciuic_dist.planning.lanes import least_seconds
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.spilling import with_transfers
from ciuic_dist.planning.training import Choice, Training

_EQUAL = 0.005
"""Choices whose times differ by less are taken for equally quick: the one that moves and holds least is kept."""
_ROUNDING = 1e-9
"""By which part sums may differ that are taken in another order."""
_SHARES = (0.0, 0.25, 0.5, 0.75)
"""Of the units: whose activations are kept where those of the others go to a lower tier, or that stay gathered."""

PLAYED = 24
"""So many choices that spill are played, the most promising ones: each takes a while."""

ProfileOf = Callable[[int], Profile]
"""The profile of a micro-batch of so many sequences."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user has decided; None: to be chosen."""

    stage: int | None = None
    micro_batch: int | None = None
    way: Way | None = None
    recompute: bool | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The best choice and what it takes."""

    choice: Choice
    forecast: Forecast


def search(
    profile_of: ProfileOf, machine: Machine, training: Training, limits: Limits | None = None, *, most: int = PLAYED
) -> Found:
    """The quickest choice that fits. Raises DoesNotFit with the least that would, ValueError where there is no choice.

    Of equally quick ones the one that moves least between tiers and ranks, then the one that takes least memory.
    ``most``: so many of those that spill are played.
    """
    tried = list(choices(profile_of, machine, training, limits or Limits()))
    if not tried:
        raise ValueError(f"{limits} leave nothing to choose from")
    played = list(_quickest(tried, profile_of, machine, training, most))
    if not played:
        raise _nearest([failure(profile_of(c.micro_batch), machine, training, c) for c in tried])
    quickest = min(found.seconds for _, found in played)
    equal = [entry for entry in played if entry[1].seconds <= quickest * (1 + _EQUAL)]
    choice, best = min(equal, key=lambda entry: (entry[1].up + entry[1].down + entry[1].sent, entry[1].device))
    return Found(choice, best)


def look(choice: Choice, profile_of: ProfileOf, machine: Machine, training: Training) -> Found | None:
    """What ``choice`` takes; None where it doesn't fit."""
    profile = profile_of(choice.micro_batch)
    expected = forecast_if_it_fits(profile, machine, training, choice)
    return None if expected is None else Found(choice, with_transfers(profile, machine, training, choice, expected))


def _nearest(failures: list[DoesNotFit]) -> DoesNotFit:
    """The least that would do for any of them."""
    nearest = min(failures, key=lambda failure: math.inf if failure.device is None else failure.device)
    below = [failure.below for failure in failures if failure.below is not None]
    return DoesNotFit(nearest.device, min(below, default=None), nearest.needs)


def _quickest(
    tried: list[Choice], profile_of: ProfileOf, machine: Machine, training: Training, most: int
) -> Iterator[tuple[Choice, Forecast]]:
    """Choices with their transfers played, as long as any that is left might be quicker, up to a number."""
    best, played = math.inf, 0
    for choice, expected in _fitting(tried, profile_of, machine, training):
        if expected.seconds > best * (1 + _EQUAL) or played == most:
            return
        played += expected.spilled.total > 0
        found = with_transfers(profile_of(choice.micro_batch), machine, training, choice, expected)
        best = min(best, found.seconds)
        yield choice, found


def _fitting(
    tried: list[Choice], profile_of: ProfileOf, machine: Machine, training: Training
) -> Iterator[tuple[Choice, Forecast]]:
    """Those that fit, the quickest first. A choice is forecast once none that was may be quicker than its passes."""
    waiting: list[tuple[float, int, Forecast]] = []
    least = (least_seconds(profile_of(c.micro_batch), machine, training, c) * (1 - _ROUNDING) for c in tried)
    for seconds, index in sorted(zip(least, range(len(tried)), strict=True)):
        while waiting and waiting[0][0] < seconds:
            yield _next(waiting, tried)
        choice = tried[index]
        found = forecast_if_it_fits(profile_of(choice.micro_batch), machine, training, choice)
        if found and not (choice.gathered and found.spills):
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


def choices(profile_of: ProfileOf, machine: Machine, training: Training, limits: Limits) -> Iterator[Choice]:
    """Every choice there is, whether it fits or not."""
    each, rest = divmod(training.sequences, machine.world)
    if rest or not each:
        raise ValueError(f"{training.sequences} sequences can't be divided among {machine.world} ranks")
    stages = range(4) if machine.world > 1 else (0,)
    for micro_batch in range(1, each + 1):
        if each % micro_batch or limits.micro_batch not in (None, micro_batch):
            continue
        profile = profile_of(micro_batch)
        for stage in stages if limits.stage is None else (limits.stage,):
            for ways, below in _activations(profile, machine, limits):
                for group in _groups(machine, stage, limits):
                    plain = Choice(stage, micro_batch, each // micro_batch, ways, below, group=group)
                    yield plain
                    sends = machine.world > 1 and not machine.maps(plain.ranks(machine.world))
                    if stage == 3 and sends and not below:
                        yield from _gathered(plain, profile.root)


def _activations(profile: Profile, machine: Machine, limits: Limits) -> Iterator[tuple[tuple[Way, ...], bool]]:
    """What can become of the units' activations; whether it goes to a lower tier."""
    units = profile.root
    if limits.recompute is not True and limits.way in (None, Way.KEEP):
        yield (Way.KEEP,) * units, False
    if limits.recompute is not False and limits.way in (None, Way.KEEP) and units:
        yield (Way.RECOMPUTE,) * units, False
    if not (machine.host or machine.nvme) or limits.recompute or limits.way is Way.KEEP or not units:
        return
    shares = _SHARES if limits.way is None else (0.0,)
    for kept in sorted({round(units * share) for share in shares} - {units}):
        for way in (Way.OFFLOAD, Way.RECOMPUTE) if limits.way is None else (limits.way,):
            yield (way,) * (units - kept) + (Way.KEEP,) * kept, True


def _groups(machine: Machine, stage: int, limits: Limits) -> Iterator[int | None]:
    """All ranks together, or groups of whole nodes: within a node there is nothing to be spared."""
    if limits.group is not None:
        if stage or limits.group == machine.world:
            yield limits.group if limits.group != machine.world else None
        return
    yield None
    if stage and machine.devices > 1:
        yield from (machine.devices * nodes for nodes in range(1, machine.nodes) if machine.nodes % nodes == 0)


def _gathered(choice: Choice, units: int) -> Iterator[Choice]:
    """The same with some of the last units full until the update."""
    for gathered in sorted({round(units * share) for share in _SHARES} - {0}):
        yield replace(choice, gathered=gathered)
