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


@dataclass(frozen=True, slots=True)
class ActivationPlan:
    """For each unit in the order of the forward what to do, and the bytes of the device that takes."""

    ways: tuple[Way, ...]
    kept: int
    """From forward to backward."""
    crowded: int
    """Of what should go down and has no room there."""
    passing: int
    """At most at a time, of what is brought back ahead of its backward, or made again."""
    ahead: bool
    """Whether a unit's activations are brought back during the backward of the one before."""

    @property
    def needed(self) -> int:
        """Bytes in all, beside what a step takes that keeps nothing."""
        return self.kept + self.crowded + self.passing


def plan_activations(
    units: Sequence[Saves], room: int, bandwidth: float, forced: Way | None = None, below: float = math.inf
) -> ActivationPlan:
    """What to do with ``units``, in the order of the forward, within ``room`` bytes of the device.

    All is kept where it fits. Else at most half of the room goes to what is kept, and half to what passes through;
    parameters and optimizer state want room as well, and a byte of theirs saves no less traffic. More is kept where
    lower tiers have room for ``below`` bytes only. What isn't kept is made again where that is quicker than to write
    and read it at ``bandwidth`` bytes a second.

    ``forced``: offload all, or recompute whatever can be, and that even where it needs more than there is room.
    What has room neither here nor below is needed beyond ``room`` as well.
    """
    total = sum(unit.nbytes for unit in units)
    if forced is None and total <= room:
        return ActivationPlan((Way.KEEP,) * len(units), total, 0, 0, ahead=False)
    for_kept = int(max(room // 2, min(total - below, room)))
    for_passing = room - for_kept
    ways = tuple(_ways(units, for_kept, for_passing, bandwidth, forced))[::-1]
    chosen = list(zip(units, ways, strict=True))
    coming = max((unit.nbytes for unit, way in chosen if way is not Way.KEEP and unit.at_once), default=0)
    remade = max((unit.nbytes for unit, way in chosen if way is Way.RECOMPUTE), default=0)
    ahead = 0 < 2 * coming <= for_passing  # one in use, one on its way
    kept = sum(unit.nbytes for unit, way in chosen if way is Way.KEEP)
    leaving = sum(unit.nbytes - unit.made * (way is Way.RECOMPUTE) for unit, way in chosen if way is not Way.KEEP)
    crowded = int(max(0, leaving - below))
    return ActivationPlan(ways, kept, crowded, 2 * coming if ahead else remade, ahead)


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


def _ways(
    units: Sequence[Saves], for_kept: int, for_passing: int, bandwidth: float, forced: Way | None
) -> Iterator[Way]:
    """From the last unit to the first."""
    left = for_kept
    for unit in reversed(units):
        again = unit.recomputable and unit.nbytes <= for_passing and unit.seconds * bandwidth < 2 * unit.made
        if not unit.nbytes:
            yield Way.KEEP
        elif forced is Way.OFFLOAD:
            yield Way.OFFLOAD
        elif forced is Way.RECOMPUTE and unit.recomputable:
            yield Way.RECOMPUTE
        elif unit.nbytes <= left:
            left -= unit.nbytes
            yield Way.KEEP
        else:
            yield Way.RECOMPUTE if again else Way.OFFLOAD
