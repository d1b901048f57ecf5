"""What becomes of what a unit's forward saves for its backward: it stays, goes to a lower tier, or is made again.

Bytes that stay are given to the units whose backward comes soonest, the last of the forward: those of the first
would hold their room for the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Way(StrEnum):
    """What is done with a unit's activations."""

    KEEP = "keep"
    """They stay on the device."""
    OFFLOAD = "offload"
    """They are written to a lower tier and read back."""
    RECOMPUTE = "recompute"
    """Only the unit's inputs are kept, in a lower tier; the forward runs again."""


@dataclass(frozen=True, slots=True)
class Saves:
    """What one unit was seen to save."""

    nbytes: int
    """In all, its inputs among them."""
    made: int
    """What would not have to be saved if its forward ran again: all but the inputs."""
    seconds: float
    """That its forward takes."""
    recomputable: bool = False
    """Whether its forward can run again and give the same."""
    at_once: bool = True
    """Whether its backward runs in one go. The root unit's begins first and ends last: what it has saved is brought
    back piece by piece."""
    in_turn: bool = True
    """Whether what it has saved is gone when the backward of the unit before begins, and its own next forward."""


@dataclass(frozen=True, slots=True)
class ActivationPlan:
    """For each unit in the order of the forward what to do, and the bytes of the device that takes."""

    ways: tuple[Way, ...]
    kept: int
    """From forward to backward."""
    crowded: int
    """Of what should go down and has no room there."""
    passing: int
    """Beyond that, of what is brought back ahead of its backward, or made again."""
    ahead: bool
    """Whether a unit's activations are brought back during the backward of the one before."""

    @property
    def needed(self) -> int:
        """Bytes in all, beside what a step takes that keeps nothing."""
        return self.kept + self.crowded + self.passing


def plan_activations(units: Sequence[Saves], room: int, bandwidth: float, below: float = math.inf) -> ActivationPlan:
    """What to do with ``units``, in the order of the forward, within ``room`` bytes of the device.

    All is kept where it fits. Else at most half of the room goes to what is kept, and half to what passes through;
    parameters and optimizer state want room as well, and a byte of theirs saves no less traffic. More is kept where
    lower tiers have room for ``below`` bytes only. What isn't kept is made again where that is quicker than to write
    and read it at ``bandwidth`` bytes a second. What has room neither here nor below is needed beyond ``room``.
    """
    total = sum(unit.nbytes for unit in units)
    if total <= room:
        return ActivationPlan((Way.KEEP,) * len(units), total, 0, 0, ahead=False)
    for_kept = int(max(room // 2, min(total - below, room)))
    ways = tuple(_ways(units, for_kept, room - for_kept, bandwidth))[::-1]
    return _planned(units, ways, room, below)


def follow_wishes(units: Sequence[Saves], wishes: Sequence[Way], room: int, below: float = math.inf) -> ActivationPlan:
    """What is wished for each of ``units``, as far as it can be.

    All is recomputed that is to be and can be, even where that needs more than there is ``room``; beside that the last
    stay of those that are to, or can't be recomputed, as far as there is room. All others are offloaded.
    """
    remade = max((unit.nbytes for unit, wish in zip(units, wishes, strict=True) if _recomputes(unit, wish)), default=0)
    plan = _planned(units, _followed(units, wishes, room), room, below)
    if plan.needed - plan.crowded > room:  # some that stay would be there while others are made again
        plan = _planned(units, _followed(units, wishes, max(0, room - remade)), room, below)
    return plan


def _followed(units: Sequence[Saves], wishes: Sequence[Way], left: int) -> tuple[Way, ...]:
    ways = []
    for unit, wish in zip(reversed(units), reversed(wishes), strict=True):
        way = Way.RECOMPUTE if _recomputes(unit, wish) else Way.OFFLOAD
        if not unit.nbytes or (wish is not Way.OFFLOAD and way is Way.OFFLOAD and unit.nbytes <= left):
            way = Way.KEEP
            left -= unit.nbytes
        ways.append(way)
    return tuple(reversed(ways))


def _recomputes(unit: Saves, wish: Way) -> bool:
    return wish is Way.RECOMPUTE and unit.recomputable


def _planned(units: Sequence[Saves], ways: tuple[Way, ...], room: int, below: float) -> ActivationPlan:
    chosen = list(zip(units, ways, strict=True))
    kept = sum(unit.nbytes for unit, way in chosen if way is Way.KEEP)
    leaving = sum(unit.nbytes - unit.made * (way is Way.RECOMPUTE) for unit, way in chosen if way is not Way.KEEP)
    comes = any(unit.nbytes for unit, way in chosen if way is not Way.KEEP and unit.at_once)
    foreseen, plain = (_passing(chosen, kept, ahead=ahead) for ahead in (True, False))
    ahead = comes and kept + foreseen <= room
    return ActivationPlan(ways, kept, int(max(0, leaving - below)), foreseen if ahead else plain, ahead)


def _passing(chosen: Sequence[tuple[Saves, Way]], kept: int, *, ahead: bool) -> int:
    """Bytes beyond ``kept`` at the peak: what a backward uses, with ``ahead`` also what the next one will.

    What units keep goes with their backwards, where these come in turn.
    """
    using = [unit.nbytes if way is Way.RECOMPUTE or (ahead and _comes(unit, way)) else 0 for unit, way in chosen]
    coming = [unit.nbytes if ahead and _comes(unit, way) else 0 for unit, way in chosen]
    if not all(unit.in_turn for unit, _ in chosen):
        return max(using, default=0) + max(coming, default=0)
    most = alive = kept
    for index in range(len(chosen) - 1, -1, -1):
        unit, way = chosen[index]
        most = max(most, alive + using[index] + (coming[index - 1] if index else 0))
        alive -= unit.nbytes * (way is Way.KEEP and unit.at_once)
    return most - kept


def _comes(unit: Saves, way: Way) -> bool:
    return way is not Way.KEEP and unit.at_once


def plan_recomputation(units: Sequence[Saves], room: int, forced: Way | None = None) -> ActivationPlan:
    """The same with nothing below: what isn't kept is made again.

    ``room`` is beside what a step takes that recomputes all it can; what can't be made again saves nothing more.
    """
    left, ways = 0 if forced is Way.RECOMPUTE else room, []
    for unit in reversed(units):
        keeps = unit.nbytes <= left
        left -= unit.nbytes * keeps
        ways.append(Way.KEEP if keeps else Way.RECOMPUTE)
    kept = sum(unit.nbytes for unit, way in zip(reversed(units), ways, strict=True) if way is Way.KEEP)
    return ActivationPlan(tuple(reversed(ways)), kept, 0, 0, ahead=False)


def _ways(units: Sequence[Saves], for_kept: int, for_passing: int, bandwidth: float) -> Iterator[Way]:
    """From the last unit to the first."""
    left = for_kept
    for unit in reversed(units):
        again = unit.recomputable and unit.nbytes <= for_passing and unit.seconds * bandwidth < 2 * unit.made
        if not unit.nbytes:
            yield Way.KEEP
        elif unit.nbytes <= left:
            left -= unit.nbytes
            yield Way.KEEP
        else:
            yield Way.RECOMPUTE if again else Way.OFFLOAD
