"""All the ways to train that there are on a machine, and that the engine follows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.footprint import footprint
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Choice, Training
from ciuic_dist.planning.ways import mixed, recomputed_in_part

_KEPT = (0.0, 0.25, 0.5, 0.75)
"""Of the units, where the others' activations go to lower tiers."""
_OFFLOADED = (0.0, 0.5, 1.0)
"""Of those others; what is between such shares is looked at once the best is known."""

ProfileOf = Callable[[int], Profile]
"""The profile of a micro-batch of so many sequences."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user has decided; None: to be chosen."""

    stage: int | None = None
    micro_batch: int | None = None
    way: Way | None = None
    recompute: bool | None = None
    """All units, by the model's own means."""
    group: int | None = None


def choices(profile_of: ProfileOf, machine: Machine, training: Training, limits: Limits) -> Iterator[Choice]:
    """Every choice, whether it fits or not. Raises ValueError for a batch that can't be divided."""
    each, rest = divmod(training.sequences, machine.world)
    if rest or not each:
        raise ValueError(f"{training.sequences} sequences can't be divided among {machine.world} ranks")
    stages = range(4) if machine.world > 1 else (0,)
    for micro_batch in range(1, each + 1):
        if each % micro_batch or limits.micro_batch not in (None, micro_batch):
            continue
        profile = profile_of(micro_batch)
        for stage in stages if limits.stage is None else (limits.stage,):
            for group in _groups(machine, stage, limits):
                kept = Choice(stage, micro_batch, each // micro_batch, (Way.KEEP,) * profile.root, group=group)
                for choice in _activations(kept, profile, machine, training, limits):
                    yield choice
                    yield from _gathered(choice, profile, machine, training)


def _activations(
    kept: Choice, profile: Profile, machine: Machine, training: Training, limits: Limits
) -> Iterator[Choice]:
    """What can become of the units' activations."""
    recomputing = replace(kept, ways=(Way.RECOMPUTE,) * profile.root)
    if limits.way in (None, Way.KEEP):
        if limits.recompute is not True:
            yield kept
        if limits.recompute is not False and profile.root:
            yield recomputing
    if limits.way is Way.KEEP or limits.recompute or not profile.root:
        return
    if machine.host or machine.nvme:
        yield from _lowered(kept, profile.root, limits.way)
    if limits.way is None:
        ways = recomputed_in_part(profile, machine, training, recomputing)
        if ways and len(set(ways)) > 1:
            yield replace(kept, ways=ways)


def _lowered(kept: Choice, units: int, forced: Way | None) -> Iterator[Choice]:
    """What isn't kept goes to lower tiers, or what it is recomputed from does."""
    if forced is not None:
        yield replace(kept, ways=(forced,) * units, below=True)
        return
    numbers = {(round(units * kept), share) for kept in _KEPT for share in _OFFLOADED}
    ways = {mixed(units, kept, round((units - kept) * share)) for kept, share in numbers if kept < units}
    for each in sorted(ways):
        yield replace(kept, ways=each, below=True)


def _groups(machine: Machine, stage: int, limits: Limits) -> Iterator[int | None]:
    """All ranks together, or groups of whole nodes: within a node there is nothing to be spared."""
    if limits.group is not None:
        if stage or limits.group == machine.world:
            yield limits.group if limits.group != machine.world else None
        return
    yield None
    if stage and machine.devices > 1:
        yield from (machine.devices * nodes for nodes in range(1, machine.nodes) if machine.nodes % nodes == 0)


def _gathered(choice: Choice, profile: Profile, machine: Machine, training: Training) -> Iterator[Choice]:
    """The same with as many of the last units full until the update as fit: each spares gathering it again.

    Where nothing would be gathered, or something is spilled, none stays; with all of them it were stage 2.
    """
    sends = machine.world > 1 and not machine.maps(choice.ranks(machine.world))
    if choice.stage < 3 or not sends or choice.below or choice.divided:
        return

    def takes(gathered: int) -> int:
        return footprint(profile, training, replace(choice, gathered=gathered), machine, spills=False).total

    most = bisect_right(range(profile.root), machine.memory, key=takes) - 1
    if most > 0:
        yield replace(choice, gathered=most)
