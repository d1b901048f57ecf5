"""How long a step takes whose memory suffices: computation and collectives side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import STATE_BYTES, Choice, Training


@dataclass(frozen=True, slots=True)
class Stretch:
    """One pass in time; seconds from the step's start."""

    name: str
    start: float
    end: float
    gather: tuple[float, float] | None = None
    """From when to when its unit was gathered."""
    reduce: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Lanes:
    """A step in which nothing is spilled."""

    seconds: float
    computing: float
    """Seconds, the update's among them."""
    updating: float
    sending: float
    """Seconds in which collectives are under way."""
    adding: float
    """The same of those that add up over groups and run beside the others."""
    sent: float
    """Bytes that a rank gets in collectives."""


@dataclass(frozen=True, slots=True)
class _Work:
    name: str
    seconds: float
    gather: int
    """Bytes to be gathered before, reduced after."""
    reduce: int
    added: float
    """Bytes of a rank's sum, to which those of other groups are added."""


def lanes(profile: Profile, machine: Machine, training: Training, choice: Choice) -> Lanes:
    """Play a step. A unit is gathered while the one before it computes; gradients are reduced behind the backward."""
    update = update_seconds(profile, machine, training, choice)
    found = _passes(profile, _computing(machine), _precise(training), _unspilled(choice))
    return replace(found, seconds=found.seconds + update, computing=found.computing + update, updating=update)


def stretches(
    profile: Profile, machine: Machine, training: Training, choice: Choice
) -> tuple[tuple[Stretch, ...], ...]:
    """What is when in the first micro-batch, and in the last where that is another."""
    numbers = dict.fromkeys((0, choice.accumulation - 1))
    return tuple(tuple(_play(profile, machine, training, choice, number).stretches) for number in numbers)


@lru_cache(maxsize=4096)
def _passes(profile: Profile, machine: Machine, training: Training, choice: Choice) -> Lanes:
    """All but the update. It is the same for machines with more memory and quicker links to it: asked for often."""
    end = choice.accumulation - 1
    shown = [_play(profile, machine, training, choice, number) for number in dict.fromkeys((0, end))]
    often = [(player, 1) for player in shown]
    if end > 1:  # those between the first and the last are alike
        often.append((_play(profile, machine, training, choice, 1), end - 1))
    return Lanes(
        seconds=sum(times * player.now for player, times in often),
        computing=sum(times * player.computing for player, times in often),
        updating=0.0,
        sending=sum(times * player.sending for player, times in often),
        adding=sum(player.adding for player in shown),
        sent=sum(times * player.sent for player, times in often),
    )


def _play(profile: Profile, machine: Machine, training: Training, choice: Choice, number: int) -> _Player:
    """One micro-batch."""
    player = _Player(machine, choice)
    times = pass_seconds(profile, machine, training, choice)
    player.play(_works(profile, machine, training, choice, times, number, last=number == choice.accumulation - 1))
    return player


def _computing(machine: Machine) -> Machine:
    """What of it matters to passes and collectives."""
    without = replace(machine, memory=0, host=0, up=0.0, down=0.0, nvme=0, read=0.0, write=0.0)
    return replace(without, name="", update=0.0, moving=0.0, showing=0.0)


def _precise(training: Training) -> Training:
    """What of it matters to a micro-batch."""
    return Training(0, 0, training.precision)


def _unspilled(choice: Choice) -> Choice:
    """The same, of which all is kept that isn't recomputed: what that moves isn't played here."""
    ways = (Way.RECOMPUTE if way is Way.RECOMPUTE else Way.KEEP for way in choice.ways)
    return replace(choice, ways=tuple(ways), below=False)


def update_seconds(profile: Profile, machine: Machine, training: Training, choice: Choice) -> float:
    """The optimizer reads and writes its state and the weights, and reads the gradients.

    Clipping reads these before that for their norm, then reads and writes them. State in 8 bits is made fp32 and read,
    written and read again.
    """
    made = 4 * STATE_BYTES["fp32"] if training.state_dtype == "8bit" else 0.0
    touched = 2 * training.state + made + 2 * training.weight + training.gradient
    own = profile.trained / choice.shards(machine.world)
    update = own / machine.update if machine.update else own * touched / machine.bandwidth
    return update + training.clips * 3 * own * training.gradient / machine.bandwidth


def least_seconds(profile: Profile, machine: Machine, training: Training, choice: Choice) -> float:
    """Of a step, whatever is sent and moved: its passes, one after the other, and the update."""
    passes = sum(pass_seconds(profile, machine, training, choice))
    return choice.accumulation * passes + update_seconds(profile, machine, training, choice)


def pass_seconds(profile: Profile, machine: Machine, training: Training, choice: Choice) -> tuple[float, ...]:
    """Of each pass; a backward whose forward runs again takes as long as both."""
    return _pass_seconds(profile, _computing(machine), training.precision, _unspilled(choice).ways)


@lru_cache(maxsize=256)
def _pass_seconds(profile: Profile, machine: Machine, precision: str, ways: tuple[Way, ...]) -> tuple[float, ...]:
    again = {unit for unit, way in enumerate(ways) if way is Way.RECOMPUTE}
    times = [machine.seconds(p, precision) for p in profile.passes]
    forward = {p.unit: seconds for p, seconds in zip(profile.passes, times, strict=True) if not p.backward}
    return tuple(
        seconds + (forward.get(p.unit, 0.0) if p.backward and p.unit in again else 0.0)
        for p, seconds in zip(profile.passes, times, strict=True)
    )


def _works(
    profile: Profile,
    machine: Machine,
    training: Training,
    choice: Choice,
    times: Sequence[float],
    number: int,
    *,
    last: bool,
) -> Iterator[_Work]:
    """The passes of a micro-batch, which take ``times``. What is full since the update is gathered by the first only.

    A unit's gradients are copied to where they are reduced from, or added to what is there, as its backward ends.
    """
    sizes = [unit.parameters * training.weight for unit in profile.units]
    ranks = choice.ranks(machine.world)
    mapped = machine.maps(ranks)
    gradients = [unit.trained * (training.weight if mapped else training.gradient) for unit in profile.units]
    staying = range(profile.root - choice.gathered, profile.root)
    ends = {p.unit: index for index, p in enumerate(profile.passes)}
    full: set[int] = set()
    for index, (p, seconds) in enumerate(zip(profile.passes, times, strict=True)):
        stays = choice.stage < 3 or p.unit in staying or p.unit == profile.root
        again = choice.stage == 3 and not stays
        turn = index and p.backward and profile.passes[index - 1].unit == p.unit
        anew = again or number == 0 or (choice.stage == 3 and p.unit == profile.root)
        gathers = choice.stage and p.unit not in full and anew and not turn
        full |= {p.unit} if stays else set()
        ended = p.backward and ends[p.unit] == index
        reduces = ended and (last or choice.stage >= 2)
        adds = number > 0 and choice.stage < 2 and machine.world > 1
        copied = (3 if adds else 2) * profile.units[p.unit].trained * training.weight if ended else 0
        yield _Work(
            f"{'backward' if p.backward else 'forward'} {profile.units[p.unit].name}",
            seconds + copied / machine.bandwidth,
            sizes[p.unit] if gathers else 0,
            _reduced(gradients[p.unit], machine, choice) if reduces else 0,
            profile.units[p.unit].trained * training.gradient / ranks if reduces and last and choice.group else 0.0,
        )


def _reduced(nbytes: int, machine: Machine, choice: Choice) -> int:
    """Bytes of a rank that are sent, or on a shared machine read and written: of all ranks' mailboxes, its part."""
    ranks = choice.ranks(machine.world)
    if not machine.maps(ranks):
        return nbytes * (1 if choice.stage else 2)
    return nbytes * (ranks + 1) // choice.shards(machine.world)


class _Player:
    def __init__(self, machine: Machine, choice: Choice) -> None:
        self._machine = machine
        self._ranks = choice.ranks(machine.world)
        self._apart = machine.devices // 2 < self._ranks <= machine.devices
        """A group is a node: it gathers by other links than those over which groups add up."""
        self.now = 0.0
        self.computing = 0.0
        self.sending = 0.0
        self.adding = 0.0
        self.sent = 0.0
        self.stretches: list[Stretch] = []
        self._link = 0.0
        """When collectives that were begun are over."""
        self._sums = 0.0
        """When those over groups are."""

    def play(self, works: Iterable[_Work]) -> None:
        """One after the other; the collectives are through at the end as well."""
        left = list(works)
        coming = self._gather(left[0].gather, self.now)
        for work, following in zip_longest(left, left[1:]):
            gather = coming
            start = max(self.now, gather[1] if gather else 0.0)
            coming = self._gather(following.gather, start) if following else None  # before what this pass reduces
            self.now = start + work.seconds
            self.computing += work.seconds
            self._reduce(work, start, gather)
        self.now = max(self.now, self._link, self._sums)

    def _reduce(self, work: _Work, start: float, gather: tuple[float, float] | None) -> None:
        end = self.now
        if self._machine.maps(self._ranks):  # every rank adds up what the others have left in memory
            seconds = work.reduce / self._machine.bandwidth
            self.now += seconds
            self.computing += seconds
        reduce = self._gather(work.reduce, end)
        if work.added:
            reduce = self._add_replicas(work.added, reduce or (self.now, self.now))
        self.stretches.append(Stretch(work.name, start, self.now, gather, reduce))

    def _gather(self, nbytes: int, ready: float) -> tuple[float, float] | None:
        """Or reduce, as which it takes as long."""
        seconds = self._machine.gather_seconds(nbytes, self._ranks) if nbytes else 0.0
        if not seconds:
            return None
        start = max(self._link, ready)
        self._link = start + seconds
        self.sending += seconds
        self.sent += nbytes * (self._ranks - 1) / self._ranks
        return start, self._link

    def _add_replicas(self, nbytes: float, reduced: tuple[float, float]) -> tuple[float, float]:
        replicas = self._machine.world // self._ranks
        seconds = self._machine.replica_seconds(nbytes, self._ranks)
        self.sent += 2 * nbytes * (replicas - 1) / replicas
        if not self._apart:
            self._link = max(self._link, reduced[1]) + seconds
            self.sending += seconds
            return reduced[0], self._link
        self._sums = max(self._sums, reduced[1]) + seconds
        self.adding += seconds
        return reduced[0], self._sums
