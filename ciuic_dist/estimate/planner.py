"""From a model and a machine to a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, floor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.monitor.units import size_text
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.choices import Limits, ProfileOf
from ciuic_dist.planning.forecast import DoesNotFit, Forecast
from ciuic_dist.planning.look import Found, look
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Advice, Plan, Prediction, UnitPlan
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.search import in_memory_seconds, search
from ciuic_dist.planning.training import Choice, Training

_GIB = 1 << 30
_WORTH = 0.01
"""The least gain that advice mentions."""
_CHANGING = 0.05
"""By which part another way has to be quicker before a run changes to it."""
_PLAYED = 4
"""Choices that are played for a piece of advice: what it promises is the least that there is to gain."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why nothing fits, in bytes."""

    model: str
    machine: str
    given: dict[str, int]
    """Of each device, and of each node's host memory and NVMe."""
    smallest: dict[str, int]
    """What would do instead, one at a time: ``device`` of each, ``below`` of a node's host memory and NVMe together."""
    takes: dict[str, int]
    """Of each device, by what it is for, where least is needed."""


class NothingFits(BudgetError):
    """No plan stays within the budgets."""

    def __init__(self, text: str, shortage: Shortage | None = None) -> None:
        super().__init__(text)
        self.shortage = shortage


def make_plan(
    name: str,
    profile_of: ProfileOf,
    machine: Machine,
    training: Training,
    limits: Limits | None = None,
    current: Choice | None = None,
) -> Plan:
    """The best plan for ``training`` on ``machine``; the ``current`` one, unless another is worth the change.

    Raises NothingFits, with the least that would, ValueError for a batch that can't be divided.
    """
    try:
        found = search(profile_of, machine, training, limits)
    except DoesNotFit as failure:
        raise NothingFits(_refusal(name, machine, failure), _shortage(name, machine, failure)) from failure
    kept = None if current is None else look(current, profile_of, machine, training)
    if kept is not None and kept.forecast.seconds <= found.forecast.seconds * (1 + _CHANGING):
        found = kept
    choice, forecast = found.choice, found.forecast
    profile = profile_of(choice.micro_batch)
    host, nvme = _budgets(profile, machine, found)
    return Plan(
        model=name,
        machine=machine,
        training=training,
        stage=choice.stage,
        micro_batch=choice.micro_batch,
        accumulation=choice.accumulation,
        spills=forecast.spills,
        device=machine.memory,
        host=host * machine.devices,
        nvme=nvme * machine.devices,
        recompute=not choice.below and not choice.divided and Way.RECOMPUTE in choice.ways,
        units=_units(profile, found),
        residency=_residency(forecast, machine),
        predicted=_prediction(found, in_memory_seconds(profile_of, machine, training, limits), training),
        advice=tuple(_advice(profile_of, machine, training, limits, forecast)),
        group=choice.group,
    )


def _budgets(profile: Profile, machine: Machine, found: Found) -> tuple[int, int]:
    """Bytes of each device that its host's memory and drives are given: room for all that may leave, and at once.

    That is what leaves in the first steps, where activations that aren't all kept are still watched.
    """
    needs, spilled, below = found.forecast.footprint, found.forecast.spilled, found.choice.below
    watched = sum(p.saved for p in profile.passes) if below else 0
    whole = needs.spillable + watched + needs.ends
    alone = not below and not spilled.total  # the device will do
    if not found.forecast.spills or found.choice.divided or (alone and whole > machine.node_host):
        return 0, 0
    host = min(whole, machine.node_host)
    return host, min(whole - host, machine.node_nvme)


def _units(profile: Profile, found: Found) -> tuple[UnitPlan, ...]:
    staying = range(profile.root - found.choice.gathered, profile.root)
    full = found.choice.stage < 3
    return tuple(
        UnitPlan(unit.name, unit.parameters, full or index == profile.root or index in staying, way)
        for index, (unit, way) in enumerate(zip(profile.units, (*found.choice.ways, Way.KEEP), strict=True))
    )


def _residency(forecast: Forecast, machine: Machine) -> dict[str, dict[str, int]]:
    """What isn't on the device fills the host's memory first, and there what is used most often."""
    needs, spilled = forecast.footprint, forecast.spilled
    room = machine.node_host
    found = {"activations and buffers": {"device": needs.pinned}}
    for kind, total, away in (
        ("activations, offloaded", 0, spilled.activations),
        ("parameters", needs.parameters, spilled.parameters),
        ("gradients", needs.gradients, spilled.gradients),
        ("optimizer state", needs.state, spilled.state),
    ):
        host = min(away, room)
        room -= host
        tiers = {"device": max(0, total - away), "host": host, "nvme": away - host}
        found[kind] = {tier: nbytes for tier, nbytes in tiers.items() if nbytes}
    return {kind: tiers for kind, tiers in found.items() if tiers}


def _prediction(found: Found, in_memory: float, training: Training) -> Prediction:
    forecast = found.forecast
    peak = {"device": forecast.device, "host": forecast.host, "nvme": forecast.nvme}
    traffic = {"between devices": forecast.sent, "up": forecast.up, "down": forecast.down}
    return Prediction(
        seconds=forecast.seconds,
        in_memory_seconds=in_memory,
        bound=forecast.bound,
        limit=forecast.limit,
        tokens_per_second=training.tokens / forecast.seconds,
        peak={tier: nbytes for tier, nbytes in peak.items() if nbytes or tier == "device"},
        stalls=forecast.seconds - forecast.unspilled - forecast.handling,
        traffic={link: nbytes for link, nbytes in traffic.items() if nbytes},
        resources=forecast.resources,
    )


def _advice(
    profile_of: ProfileOf, machine: Machine, training: Training, limits: Limits | None, now: Forecast
) -> Iterator[Advice]:
    """What would help, the most helpful first."""
    gains = []
    for change, where, what in _changes(machine, training, now):
        try:
            found = search(profile_of, where, what, limits, most=_PLAYED)
        except DoesNotFit:
            continue
        gains.append(Advice(change, now.seconds / found.forecast.seconds - 1))
    yield from sorted((entry for entry in gains if entry.gain >= _WORTH), key=lambda entry: -entry.gain)


def _changes(machine: Machine, training: Training, now: Forecast) -> Iterator[tuple[str, Machine, Training]]:
    for change, where in _larger(machine, now):
        yield change, where, training
    if training.state_dtype == "fp32" and now.spilled.state and not machine.shared:  # what it costs a CPU isn't known
        yield "optimizer state in 8 bits, which isn't exact", machine, replace(training, state_dtype="8bit")


def _larger(machine: Machine, now: Forecast) -> Iterator[tuple[str, Machine]]:
    """What is in use, and among links between devices what computation doesn't hide."""
    waits = now.unspilled - now.computing > _WORTH * now.seconds
    yield "+16 GiB on each device", replace(machine, memory=machine.memory + 16 * _GIB)
    if machine.host:
        yield "+32 GiB of host memory a device", replace(machine, host=machine.host + 32 * _GIB * machine.devices)
    if "link to the host" in now.resources:
        yield "twice the link to the host", replace(machine, up=2 * machine.up, down=2 * machine.down)
    if "drives" in now.resources:
        yield (
            "twice the drives",
            replace(machine, nvme=2 * machine.nvme, read=2 * machine.read, write=2 * machine.write),
        )
    if waits and machine.devices > 1 and not machine.maps(machine.world):
        yield "twice the links between devices", replace(machine, peers=2 * machine.peers)
    if waits and machine.nodes > 1:
        yield "twice the network", replace(machine, network=2 * machine.network)


def _refusal(name: str, machine: Machine, failure: DoesNotFit) -> str:
    needs = failure.needs
    text = f"{name} doesn't fit {machine.name}: "
    if failure.device is None:
        text += f"what has to be below the {size_text(machine.memory, floor)} of each device finds no room there"
    else:
        needed, there = size_text(failure.device, ceil), size_text(machine.memory, floor)
        text += f"each device needs {needed} at the least and has {there}"
    text += (
        f"; activations take {size_text(needs.transient)} of it, full units and gradients on their way "
        f"{size_text(needs.fixed)}, what passes through {size_text(needs.passing)}"
    )
    if failure.below is not None:
        more = size_text(failure.below * machine.devices, ceil)
        text += f". {more} more of each node's host memory or NVMe would do as well"
    return text


def _shortage(name: str, machine: Machine, failure: DoesNotFit) -> Shortage:
    smallest, needs = {}, failure.needs
    if failure.device is not None:
        smallest["device"] = failure.device
    if failure.below is not None:
        smallest["below"] = (machine.node_host + machine.node_nvme + failure.below) * machine.devices
    return Shortage(
        name,
        machine.name,
        given={"device": machine.memory, "host": machine.host, "nvme": machine.nvme},
        smallest=smallest,
        takes={
            "activations": needs.transient,
            "full units and gradients on their way": needs.fixed,
            "what passes through": needs.passing,
            "parameters": needs.parameters,
            "gradients": needs.gradients,
            "optimizer state": needs.state,
        },
    )
