"""What one way to train takes on a machine: peaks of every tier, seconds, traffic, and what bounds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from ciuic_dist.monitor.units import size_text
from ciuic_dist.planning.footprint import Footprint, footprint, holders, lowered
from ciuic_dist.planning.lanes import Lanes, lanes
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Choice, Training


class DoesNotFit(ValueError):
    """A budget too small. ``device`` bytes would do beside the tiers there are, or ``below`` more bytes of these."""

    def __init__(self, device: int | None, below: int | None, needs: Footprint) -> None:
        """None where more of it wouldn't help alone; ``needs``: what can't leave the device, and the rest."""
        ways = (device, "on the device"), (below, "more below it")
        super().__init__("needs " + " or ".join(f"{size_text(n, ceil)} {where}" for n, where in ways if n is not None))
        self.device = device
        self.below = below
        self.needs = needs


@dataclass(frozen=True, slots=True)
class Spilled:
    """Bytes of one rank that aren't on the device for good."""

    parameters: int = 0
    gradients: int = 0
    state: int = 0
    activations: int = 0
    """At the end of a forward."""

    @property
    def total(self) -> int:
        """Bytes that lower tiers hold."""
        return self.parameters + self.gradients + self.state + self.activations


@dataclass(frozen=True, slots=True)
class Forecast:
    """One rank's step. Bytes and seconds."""

    seconds: float
    unspilled: float
    """The same if no transfer between tiers took any time."""
    computing: float
    updating: float
    handling: float
    """Of the processor, for what moves between tiers, where that comes on top of computing."""
    sending: float
    """While collectives are under way."""
    device: int
    """Peaks of the tiers."""
    host: int
    nvme: int
    sent: float
    """Bytes that collectives bring a rank."""
    up: float
    """Bytes from lower tiers to the device."""
    down: float
    resources: dict[str, float]
    """Seconds that a step needs each resource for, at its full rate."""
    spills: bool
    """It takes a budget, be it for gradients to take turns that would be there all at once without one."""
    spilled: Spilled
    footprint: Footprint

    @property
    def bound(self) -> float:
        """No schedule of this choice is quicker."""
        return max(self.resources.values())

    @property
    def limit(self) -> str:
        """The resource that bounds it."""
        return max(self.resources, key=self.resources.__getitem__)


def forecast(profile: Profile, machine: Machine, training: Training, choice: Choice) -> Forecast:
    """Of ``choice``; ``profile`` is of one micro-batch. Raises DoesNotFit."""
    found = forecast_if_it_fits(profile, machine, training, choice)
    if found is None:
        raise failure(profile, machine, training, choice)
    return found


def forecast_if_it_fits(profile: Profile, machine: Machine, training: Training, choice: Choice) -> Forecast | None:
    """The same; None where it doesn't fit, which takes less time than finding out what would.

    What is spilled first is what is touched least: state once a step, then gradients, then parameters. Transfers
    hide behind everything else as far as the links' rates allow.
    """
    needs = footprint(profile, training, choice, machine, spills=choice.below)
    spills = choice.below or needs.total > machine.memory
    if spills and not choice.below:
        needs = footprint(profile, training, choice, machine, spills=True)
    spilled = _spilled(needs, machine, profile, choice)
    if spilled is None:
        return None
    played = lanes(profile, machine, training, choice)
    up, down = _moved(spilled, machine, choice)
    handling = _handling(machine, choice, spilled, up + down)
    resources = _resources(played, machine, spilled, up, down, handling)
    below = spilled.total
    return Forecast(
        seconds=max(played.seconds + handling, *resources.values()),
        unspilled=played.seconds,
        computing=played.computing,
        updating=played.updating,
        handling=handling,
        sending=played.sending,
        device=min(needs.total, machine.memory) if spilled.total else needs.total,
        host=min(below, machine.node_host),
        nvme=max(0, below - machine.node_host),
        sent=played.sent,
        up=up,
        down=down,
        resources=resources,
        spills=spills,
        spilled=spilled,
        footprint=needs,
    )


def _spilled(needs: Footprint, machine: Machine, profile: Profile, choice: Choice) -> Spilled | None:
    """None where it doesn't fit."""
    activations = _offloaded(profile, choice)
    short = _short(needs, machine)
    if needs.total > machine.memory or choice.below:
        least = _least_device(needs, activations, _watched(profile, choice), _below(machine))
        if least is None or least > machine.memory:
            return None
    state = min(short, needs.state)
    gradients = min(short - state, needs.gradients)
    return Spilled(short - state - gradients, gradients, state, activations)


def _short(needs: Footprint, machine: Machine) -> int:
    """Bytes that find no room on the device; what passes has room of its own."""
    short = max(0, needs.total - machine.memory)
    return min(short + needs.passing, needs.spillable) if short else 0


def _least_device(needs: Footprint, activations: int, watched: int, below: int) -> int | None:
    """Bytes that do where ``below`` bytes are in lower tiers, or None where no number does.

    In the first steps, which show what the device has room for, all lies below but what passes, and state for which
    there is no room. Parameters and gradients always have their place there, activations only where all else has:
    those that are offloaded, and in the first step all that are ``watched``, as far as the device has no room.
    """
    if activations:
        there = needs.spillable + needs.ends
        return needs.least + max(0, there + watched - below) if there + activations <= below else None
    if needs.parameters + needs.gradients > below:
        return None
    return needs.least + max(0, needs.spillable - below)


def _below(machine: Machine) -> int:
    return machine.node_host + machine.node_nvme


def failure(profile: Profile, machine: Machine, training: Training, choice: Choice) -> DoesNotFit:
    """What would do for a choice that doesn't fit: pages grow with the device, and with them what passes."""
    activations, watched, below = _offloaded(profile, choice), _watched(profile, choice), _below(machine)
    needs = footprint(profile, training, choice, machine, spills=True)
    lacking = _lacking(needs, activations, watched, machine)
    if choice.below and _least_device(needs, activations, watched, below) is None:
        return DoesNotFit(None, lacking, needs)
    plain = footprint(profile, training, choice, machine, spills=choice.below).total
    device, wanted = 0, machine.memory
    while device < wanted:
        device = wanted
        there = footprint(profile, training, choice, replace(machine, memory=device), spills=True)
        ways = [_least_device(there, activations, watched, below), *(() if choice.below else (plain, there.total))]
        wanted = min(way for way in ways if way is not None)
    return DoesNotFit(device, lacking, needs)


def _lacking(needs: Footprint, activations: int, watched: int, machine: Machine) -> int | None:
    """Bytes more that would do in lower tiers; None where no number does."""
    spare = machine.memory - needs.least
    if spare < 0:
        return None
    below = needs.parameters + needs.gradients + max(0, needs.state - spare)
    if activations:
        below = needs.spillable + needs.ends + max(activations, watched - spare)
    return max(0, below - _below(machine))


def _watched(profile: Profile, choice: Choice) -> int:
    """Bytes of activations that are sent to lower tiers while their ways aren't decided."""
    return sum(p.saved for p in profile.passes if not p.backward) if choice.below else 0


def _offloaded(profile: Profile, choice: Choice) -> int:
    """Bytes of activations in lower tiers when a forward ends."""
    return sum(lowered(p, choice) for p in profile.passes if not p.backward)


def _moved(spilled: Spilled, machine: Machine, choice: Choice) -> tuple[float, float]:
    """Bytes up and down in a step: parameters come for every forward and backward and leave when they have changed.

    Gradients come and leave with every micro-batch that is reduced, which each adds to what there is.
    """
    often = choice.accumulation
    gradients = spilled.gradients * (often if machine.world == 1 or choice.stage >= 2 else 1)
    up = spilled.state + gradients + spilled.parameters * 2 * often + spilled.activations * often
    down = spilled.state + gradients + spilled.parameters + spilled.activations * often
    return float(up), float(down)


def _handling(machine: Machine, choice: Choice, spilled: Spilled, moved: float) -> float:
    """Seconds of a rank's processor. All ranks of a host map what comes on any of them, whenever it is used."""
    shown = 2 * choice.accumulation * spilled.parameters * holders(choice, machine)
    return moved * machine.moving + shown * machine.showing


def _resources(
    played: Lanes, machine: Machine, spilled: Spilled, up: float, down: float, handling: float
) -> dict[str, float]:
    found = {"computation": played.computing + handling, "links between devices": played.sending}
    if played.adding:
        found["links between groups"] = played.adding
    if not spilled.total:
        return found
    drives = max(0, spilled.total - machine.node_host) / spilled.total
    if machine.up:
        both = (up / machine.up, down / machine.down)
        found["link to the host"] = max(both) if machine.duplex else sum(both)
    if drives:
        found["drives"] = machine.devices * drives * (up / machine.read + down / machine.write)
    return found


def in_memory(machine: Machine) -> Machine:
    """The same machine with memory to spare on its devices, and in the tiers that it has."""
    spare = 1 << 62
    return replace(machine, memory=spare, host=machine.host and spare, nvme=machine.nvme and spare)
