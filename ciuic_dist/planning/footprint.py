"""How many bytes of a device one way to train takes, and which of them may be elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.flight import MAILBOX_SLOTS, REDUCTIONS_IN_FLIGHT, UNITS_IN_FLIGHT
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.pages import (
    GRADIENT_SLOTS,
    LARGEST_ON_ACCELERATORS,
    LARGEST_ON_HOSTS,
    PAGED_SHARD_MULTIPLE,
    PAGES_OF_A_FLAT,
    STATE_SLOTS,
    page_bytes,
)
from ciuic_dist.planning.profile import Pass, Profile
from ciuic_dist.planning.training import Choice, Training

_COLUMNS = 3
"""Of a flat beside its parameters and the lower halves of masters: gradients, and two moments."""
_IN_FLIGHT = 2
"""Full units at a time: in use, and coming."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on each rank."""

    transient: int
    """Activations and temporary values, at their peak."""
    fixed: int
    """What else can't leave: the root unit, units in use, gradients on their way."""
    parameters: int
    gradients: int
    state: int
    passing: int
    """Of the last three, that have to be there at a time at the least."""
    page: int
    ends: int
    """Of pages below that aren't full, at the most: each column of a flat ends in one of its own."""

    @property
    def pinned(self) -> int:
        """What can't leave."""
        return self.transient + self.fixed

    @property
    def spillable(self) -> int:
        """What can."""
        return self.parameters + self.gradients + self.state

    @property
    def total(self) -> int:
        """With everything on the device."""
        return self.pinned + self.spillable

    @property
    def least(self) -> int:
        """With all that can leave away."""
        return self.pinned + min(self.passing, self.spillable)


def footprint(profile: Profile, training: Training, choice: Choice, machine: Machine, *, spills: bool) -> Footprint:
    """What ``choice`` takes of each device, under a budget or not; ``profile`` is of one micro-batch."""
    sizes = [unit.parameters for unit in profile.units]
    root, largest, total = sizes[-1], max(sizes[:-1], default=0), sum(sizes)
    ranks = choice.shards(machine.world)
    owners = holders(choice, machine)
    kept = profile.units[-1].trained if spills and consumes(training, choice, machine) else profile.trained
    page = page_bytes(machine.memory, LARGEST_ON_HOSTS if machine.shared else LARGEST_ON_ACCELERATORS)
    return Footprint(
        transient=transient(profile, choice),
        fixed=(root // (ranks if machine.maps(ranks) else 1) + _full(sizes, choice, machine)) * training.weight
        + _landing(profile, training, choice, machine, spills=spills),
        parameters=(total - root) * training.weight // owners,
        gradients=kept * training.gradient // ranks,
        state=int(profile.trained * training.state / ranks),
        passing=UNITS_IN_FLIGHT * largest * training.weight // owners + (STATE_SLOTS + GRADIENT_SLOTS) * page,
        page=page,
        ends=_ends(profile, training, choice, machine, page),
    )


def _ends(profile: Profile, training: Training, choice: Choice, machine: Machine, page: int) -> int:
    """A flat has some pages of fp32 on each rank at the least, so it has as many ends as ranks keep a part of it."""
    ranks = choice.shards(machine.world)
    copies = 1 if machine.maps(ranks) or choice.stage == 3 else ranks
    columns = copies + _COLUMNS + (training.precision == "bf16")
    flats = sum(1 + unit.parameters * 4 // (PAGES_OF_A_FLAT * page * ranks) for unit in profile.units)
    return flats * columns * (page + PAGED_SHARD_MULTIPLE * 4)


def consumes(training: Training, choice: Choice, machine: Machine) -> bool:
    """Whether each unit's gradients are used up as they are reduced; the root's come over the whole backward.

    Between devices reductions end later than the backward goes on.
    """
    at_once = machine.maps(choice.ranks(machine.world)) or machine.world == 1
    return at_once and not training.clips and choice.accumulation == 1


def holders(choice: Choice, machine: Machine) -> int:
    """Ranks that each have a part of a unit's parameters; those of one host share what they have in full."""
    least = 1 if machine.maps(choice.ranks(machine.world)) else 3
    return choice.shards(machine.world) if choice.stage >= least else 1


def _full(sizes: list[int], choice: Choice, machine: Machine) -> int:
    """Parameters that a rank has in full beside its part of them."""
    if machine.maps(choice.ranks(machine.world)) or holders(choice, machine) == 1:
        return 0
    return min(_IN_FLIGHT * max(sizes[:-1], default=0), sum(sizes[:-1])) + sum(_staying(sizes, choice))


def _landing(profile: Profile, training: Training, choice: Choice, machine: Machine, *, spills: bool) -> int:
    """Bytes of gradients on their way to being reduced, the root's among them, which come over the whole backward."""
    sizes = [unit.trained for unit in profile.units]
    total, root, largest = sum(sizes), sizes[-1], max(sizes[:-1], default=0)
    if machine.world == 1:
        return root * (training.gradient if spills else training.weight)
    waits = choice.stage < 2 and choice.accumulation > 1  # for the last micro-batch's
    summing = 0 if choice.group is None else 2 * max(largest, root) // choice.group * training.gradient
    if machine.maps(choice.ranks(machine.world)):  # beside those, a mailbox
        mailbox = min(MAILBOX_SLOTS * largest + root, total) if choice.stage >= 2 or spills else total
        return total * training.gradient * waits + mailbox * training.weight + summing
    if choice.stage < 2 and (waits or not spills):  # what was made once is kept
        return total * training.gradient + summing
    return min((1 + REDUCTIONS_IN_FLIGHT) * largest + root, total) * training.gradient + summing


def _staying(sizes: list[int], choice: Choice) -> list[int]:
    units = len(sizes) - 1
    return sizes[units - choice.gathered : units]


def transient(profile: Profile, choice: Choice) -> int:
    """Bytes of activations and temporary values at the peak of a forward and backward."""
    return max(level for _, level in levels(profile, choice))


def levels(profile: Profile, choice: Choice) -> Iterator[tuple[int, int]]:
    """For each pass the bytes of activations that are alive when it begins, and at its peak.

    A unit's forward leaves what its backward needs; where that isn't kept, it is there again for the backward.
    """
    alive = 0
    held = {p.unit: p for p in profile.passes if not p.backward}
    for p in profile.passes:
        gone = choice.way(p.unit) is not Way.KEEP
        again = held.get(p.unit) if gone and p.backward else None
        yield alive, alive + (p.above if again is None else max(_remaking(again), again.remade + p.above))
        alive += _left(p, held, choice) if gone else p.net


def lowered_levels(profile: Profile, choice: Choice) -> Iterator[int]:
    """For each pass the bytes of activations that are in lower tiers when it begins."""
    there: dict[int, int] = {}
    for p in profile.passes:
        yield sum(there.values())
        there[p.unit] = 0 if p.backward else there.get(p.unit, 0) + lowered(p, choice)


def lowered(p: Pass, choice: Choice) -> int:
    """Bytes of its activations that a forward leaves in lower tiers."""
    way = choice.way(p.unit)
    if not choice.below or way is Way.KEEP:
        return 0
    return p.saved if way is Way.OFFLOAD else p.inputs


def _remaking(forward: Pass) -> int:
    """At the peak of a forward that runs again; what it starts from is kept meanwhile, saved or not."""
    return forward.above + max(0, forward.inputs - (forward.saved - forward.remade))


def _left(p: Pass, held: dict[int, Pass], choice: Choice) -> int:
    """Bytes by which a pass changes what is alive whose unit doesn't keep its activations."""
    stays = 0 if choice.below else held[p.unit].inputs
    return -stays if p.backward else stays
