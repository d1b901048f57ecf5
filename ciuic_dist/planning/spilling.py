"""How long a step takes that spills: its transfers played against its computation."""

from __future__ import annotations

from dataclasses import replace

from ciuic_dist.planning.footprint import consumes, holders
from ciuic_dist.planning.forecast import Forecast
from ciuic_dist.planning.lanes import pass_seconds
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.policy import paged
from ciuic_dist.planning.profile import Pass, Profile, Recipe, UnitProfile, training_step
from ciuic_dist.planning.simulate import record, simulate
from ciuic_dist.planning.timeline import Timeline
from ciuic_dist.planning.trace import Item, Trace
from ciuic_dist.planning.training import Choice, Training
from ciuic_dist.planning.two_tier import BudgetTooSmall, TwoTier

_PAGES = 64
"""About so many pages of state are played: more of them take longer and tell little more."""
_MICRO_BATCHES = 3
"""So many are played: every further one is like the third."""


def with_transfers(
    profile: Profile, machine: Machine, training: Training, choice: Choice, expected: Forecast
) -> Forecast:
    """The forecast after its steady state was played with the engine's policy.

    What computation, collectives and the processor's part in transfers take together, ``expected`` knows;
    activations that pass take their part of the links' rates. The units of the trace lie on the device as a whole;
    where that finds no room, nothing hides.
    """
    spilled = expected.spilled
    if not spilled.total - spilled.activations:
        return expected
    try:
        seconds, up, down = _played(profile, machine, training, choice, expected)
    except BudgetTooSmall:
        return replace(expected, seconds=expected.unspilled + expected.handling + _moving(machine, expected))
    passing = choice.accumulation * spilled.activations
    return replace(
        expected,
        seconds=max(expected.seconds, seconds),
        up=max(expected.up, up + passing),
        down=max(expected.down, down + passing),
    )


def timeline(
    profile: Profile, machine: Machine, training: Training, choice: Choice, expected: Forecast
) -> Timeline | None:
    """What happens when in the steady state, in steps of three micro-batches at most.

    None where nothing is spilled but activations, or where `with_transfers` finds no room to play it.
    """
    if not expected.spilled.total - expected.spilled.activations:
        return None
    trace = _trace(profile, machine, training, choice, expected, min(choice.accumulation, _MICRO_BATCHES))
    try:
        two_tier = _two_tier(trace, machine, choice, expected)
        return record(trace, two_tier, paged(trace, two_tier.room(trace)))
    except BudgetTooSmall:
        return None


def _played(
    profile: Profile, machine: Machine, training: Training, choice: Choice, expected: Forecast
) -> tuple[float, ...]:
    """Seconds of a step, bytes up and bytes down. What a third micro-batch adds, every further one adds as well."""

    def play(count: int) -> tuple[float, ...]:
        trace = _trace(profile, machine, training, choice, expected, count)
        two_tier = _two_tier(trace, machine, choice, expected)
        outcome = simulate(trace, two_tier, paged(trace, two_tier.room(trace)))
        return outcome.seconds, outcome.up, outcome.down

    more = choice.accumulation - _MICRO_BATCHES
    if more <= 0:
        return play(choice.accumulation)
    return tuple(three + more * (three - two) for two, three in zip(play(2), play(3), strict=True))


def _moving(machine: Machine, expected: Forecast) -> float:
    """Seconds of all transfers one after the other."""
    up, down = (
        _slower(link, drive, _on_drives(machine, expected), machine)
        for link, drive in ((machine.up, machine.read), (machine.down, machine.write))
    )
    return expected.up / up + expected.down / down


def _trace(
    profile: Profile, machine: Machine, training: Training, choice: Choice, expected: Forecast, count: int
) -> Trace:
    """A rank's part, with ``count`` micro-batches. Waiting for collectives and handling transfers stretch it evenly."""
    ranks = choice.shards(machine.world)
    units = tuple(UnitProfile(unit.name, -(-unit.parameters // ranks), unit.frozen // ranks) for unit in profile.units)
    seconds = list(pass_seconds(profile, machine, training, choice))
    taken = expected.unspilled + expected.handling - expected.updating
    stretch = taken / choice.accumulation / max(sum(seconds), 1e-12)
    passes = tuple(
        Pass(p.unit, p.backward, flops=time * stretch) for p, time in zip(profile.passes, seconds, strict=True)
    )
    fused = consumes(training, choice, machine)
    weight = training.weight * ranks // holders(choice, machine)
    total = sum(unit.trained for unit in units) * training.state
    page = max(expected.footprint.page, int(total) // _PAGES)
    recipe = Recipe(page, weight, training.gradient, _whole(training.state), fused=fused)
    trace = training_step(Profile(units, passes * count), recipe)
    return replace(trace, items=_root_apart(trace, profile.root), transient=expected.footprint.pinned)


def _root_apart(trace: Trace, root: int) -> tuple[Item, ...]:
    """The items, the first of which are the units' weights; the root's is among what can't leave."""
    return tuple(replace(item, size=0) if index == root else item for index, item in enumerate(trace.items))


def _whole(state: float) -> int:
    return max(round(state), 1)


def _two_tier(trace: Trace, machine: Machine, choice: Choice, expected: Forecast) -> TwoTier:
    """The links as pages see them: slowed by drives where a part of them lies there, and by passing activations.

    Memory is as quick as the update is known to be.
    """
    spilled = expected.spilled
    drives = _on_drives(machine, expected)
    up, down = _slower(machine.up, machine.read, drives, machine), _slower(machine.down, machine.write, drives, machine)
    passing = choice.accumulation * spilled.activations
    share = 1 - min(passing / min(up, down) / expected.seconds, 0.9)
    bandwidth = sum(op.touched for op in trace.ops) / expected.updating
    return TwoTier(1.0, bandwidth, machine.memory, up * share, down * share, machine.duplex)


def _on_drives(machine: Machine, expected: Forecast) -> float:
    """Which part of what is spilled lies there."""
    return max(0, expected.spilled.total - machine.node_host) / expected.spilled.total


def _slower(link: float, drive: float, part: float, machine: Machine) -> float:
    """Bytes a second of one rank."""
    from_drive = drive / machine.devices / part if part else float("inf")
    return min(link or float("inf"), from_drive)
