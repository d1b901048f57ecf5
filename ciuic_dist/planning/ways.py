"""Which units keep their activations, and what becomes of the others'."""

from __future__ import annotations

from ciuic_dist.planning.activations import Saves, Way, plan_recomputation
from ciuic_dist.planning.footprint import footprint
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Choice, Training


def mixed(units: int, kept: int, offloaded: int) -> tuple[Way, ...]:
    """The last ``kept`` keep theirs; of the others so many offload, spread evenly, and the rest recompute.

    So links are busy over the whole step.
    """
    others = units - kept
    offloads = ((unit + 1) * offloaded // others > unit * offloaded // others for unit in range(others))
    return tuple(Way.OFFLOAD if leaves else Way.RECOMPUTE for leaves in offloads) + (Way.KEEP,) * kept


def recomputed_in_part(
    profile: Profile, machine: Machine, training: Training, recomputing: Choice
) -> tuple[Way, ...] | None:
    """What the engine does with nothing below the device: it recomputes no more than it must.

    ``recomputing`` recomputes all. None where not even that has room.
    """
    needs = footprint(profile, training, recomputing, machine, spills=True)
    room = machine.memory - needs.total
    saves = [_saves(profile, unit) for unit in range(profile.root)]
    return None if room < 0 else plan_recomputation(saves, room).ways


def _saves(profile: Profile, unit: int) -> Saves:
    """What keeping a unit's activations takes where its inputs stay anyway."""
    made = sum(p.remade for p in profile.passes if p.unit == unit and not p.backward)
    return Saves(made, made, 0.0, recomputable=True)
