"""Play a policy on a machine, event by event, until the steps repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ciuic_dist.planning.policy import Policy
from ciuic_dist.planning.timeline import Log, Place, Timeline
from ciuic_dist.planning.trace import Trace
from ciuic_dist.planning.two_tier import BudgetTooSmall, TwoTier
from ciuic_dist.planning.view import View

CYCLES = 16
"""Where a policy doesn't settle by then, the second half of these is averaged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training step in the steady state, on average."""

    policy: str
    seconds: float
    stall: float
    """Seconds of it in which an operation waited for its items."""
    misses: float
    """Uses of an item that was not on the device when its operation came up."""
    up: float
    """Bytes fetched."""
    down: float
    """Bytes written back."""
    peak: int
    """Bytes of items on the device at the most, transfers under way included."""
    cycles: int
    """How many rounds were played."""


@dataclass(slots=True)
class _Counters:
    seconds: float = 0.0
    misses: int = 0
    up: int = 0
    down: int = 0


@dataclass(slots=True)
class _Transfer:
    item: int
    end: float
    valid: bool = True
    """Of a write: whether the item is still as it was written."""


@dataclass(slots=True)
class _Run:
    trace: Trace
    machine: TwoTier
    policy: Policy
    seconds: list[float]
    view: View
    free: int
    least: int
    """Bytes that were free at the least."""
    counters: _Counters = field(default_factory=_Counters)
    running: float | None = None
    """When the current operation ends; None while it waits."""
    reserved: int | None = None
    """The item that is fetched next, once there is room and the link is free."""
    rising: _Transfer | None = None
    falling: _Transfer | None = None
    leaving: list[int] = field(default_factory=list)
    """Evicted items that have to be written back first, in order."""
    log: Log = field(default_factory=Log)

    def cycle(self) -> None:
        """Run each operation once."""
        last = self.view.now + len(self.trace.ops)
        while self.view.now < last:
            self._start()
            ends = [t.end for t in (self.rising, self.falling) if t] + ([] if self.running is None else [self.running])
            if not ends:
                raise RuntimeError(f"{self.policy.name} leaves {self.trace.ops[self.view.index].name} waiting for ever")
            self.counters.seconds = min(ends)
            self._end(self.counters.seconds)

    def signature(self) -> tuple[object, ...]:
        """Equal at the start of two cycles: what lies between them repeats."""
        under_way = (self.rising and self.rising.item, self.falling and self.falling.item, self.reserved)
        return (*map(frozenset, (self.view.resident, self.view.dirty)), *under_way, tuple(self.leaving))

    def _size(self, item: int) -> int:
        return self.trace.items[item].size

    def _demand(self) -> list[int]:
        """What the current operation waits for, in its order."""
        if self.running is not None:
            return []
        return [item for item in self.view.pinned if item not in self.view.resident]

    def _start(self) -> None:
        """Start whatever can start now."""
        if self.running is None:
            self._rescue()
            self._create()
        self._raise()
        self._lower()
        if self.running is None and not self._demand():
            self.running = self.counters.seconds + self.seconds[self.view.index]
            self.log.ops.append((self.view.index, self.counters.seconds, self.running))

    def _rescue(self) -> None:
        """What is needed now, and was only about to leave, stays."""
        for item in self._demand():
            if item in self.leaving:
                self.leaving.remove(item)
                self.view.resident.add(item)

    def _create(self) -> None:
        for item in self.trace.ops[self.view.index].creates:
            if item not in self.view.resident and self._room_for(item, demanded=True):
                self._occupy(item)
                self.view.absent.discard(item)
                self._arrive(item)

    def _raise(self) -> None:
        """Choose what to fetch, make room for it and fetch it; then prepare the next one meanwhile."""
        while True:
            self._choose()
            if self.reserved is None or self.rising or (self.falling and not self.machine.duplex):
                return
            size = self._size(self.reserved)
            if self.free < size:
                return
            self._occupy(self.reserved)
            self.counters.up += size
            self.rising = self._transfer(self.reserved, up=True)
            self.reserved = None

    def _choose(self) -> None:
        demand = [item for item in self._demand() if item in self.view.absent]
        waits = self.reserved is not None and self.reserved not in self.view.pinned
        if waits and (demand or self._awaits_creation()):  # what the operation waits for comes first
            assert self.reserved is not None
            self.view.absent.add(self.reserved)
            self.reserved = None
        if self.reserved is None:
            item = demand[0] if demand else self._ahead()
            if item is not None and self._room_for(item, demanded=bool(demand), starting=True):
                self.view.absent.discard(item)
                self.reserved = item
        elif not self._room_for(self.reserved, demanded=not waits, starting=True):
            self.view.absent.add(self.reserved)
            self.reserved = None

    def _ahead(self) -> int | None:
        return None if self._awaits_creation() else self.policy.fetch(self.view)

    def _awaits_creation(self) -> bool:
        creates = self.trace.ops[self.view.index].creates
        return self.running is None and any(item not in self.view.resident for item in creates)

    def _room_for(self, item: int, *, demanded: bool, starting: bool = False) -> bool:
        """Evict until the room for ``item`` is free, or (``starting``) is going to be."""
        short = self._size(item) - self.free - sum(map(self._size, self.leaving))
        if short > 0:
            victims = self.policy.victims(self.view, item, short, demanded=demanded)
            if victims is None:
                return False
            for victim in victims:
                self._evict(victim)
        return starting or self.free >= self._size(item)

    def _occupy(self, item: int) -> None:
        self.free -= self._size(item)
        self.least = min(self.least, self.free)
        self._place(item, Place.DEVICE)

    def _evict(self, item: int) -> None:
        self.view.resident.remove(item)
        if item in self.view.dirty:
            self.leaving.append(item)
        else:
            self._gone(item)

    def _gone(self, item: int) -> None:
        self.view.absent.add(item)
        self._free(item, Place.BELOW)

    def _free(self, item: int, place: Place) -> None:
        """Its room on the device; it is at ``place`` now."""
        self.free += self._size(item)
        self._place(item, place)

    def _place(self, item: int, place: Place) -> None:
        self.log.places.append((self.counters.seconds, item, place))

    def _transfer(self, item: int, *, up: bool) -> _Transfer:
        start = self.counters.seconds
        end = start + self._size(item) / (self.machine.up if up else self.machine.down)
        self.log.transfers.append((item, up, start, end))
        return _Transfer(item, end)

    def _lower(self) -> None:
        if self.falling or (self.rising and not self.machine.duplex):
            return
        item = self.leaving[0] if self.leaving else self.policy.clean(self.view)
        if item is not None:
            self.falling = self._transfer(item, up=False)
            self.counters.down += self._size(item)

    def _end(self, moment: float) -> None:
        """End whatever ends at ``moment``; links before operations."""
        if self.rising and self.rising.end <= moment:
            self._arrive(self.rising.item)
            self.rising = None
        if self.falling and self.falling.end <= moment:
            self._written(self.falling)
            self.falling = None
        if self.running is not None and self.running <= moment:
            self._finish()

    def _arrive(self, item: int) -> None:
        self.view.resident.add(item)
        self.view.fetched[item] = self.view.now

    def _written(self, write: _Transfer) -> None:
        if write.valid:
            self.view.dirty.discard(write.item)
            if write.item in self.leaving:
                self.leaving.remove(write.item)
                self._gone(write.item)

    def _finish(self) -> None:
        """The current operation is done: its items are used, the next one's are needed."""
        view, index, count = self.view, self.view.index, len(self.trace.ops)
        op = self.trace.ops[index]
        for item in op.uses:
            uses = self.trace.uses[item]
            following = next((use for use in uses if use > index), uses[0] + count)
            view.next_use[item] = view.now + following - index
            view.last_use[item] = view.now
            view.counts[item] += 1
        view.dirty.update(op.dirties, op.creates)
        if self.falling and self.falling.item in (*op.dirties, *op.creates, *op.discards):
            self.falling.valid = False
        for item in op.discards:
            view.resident.remove(item)
            view.dirty.discard(item)
            self._free(item, Place.NOWHERE)
        view.now += 1
        self.running = None
        needed = self.trace.ops[view.index]
        self.counters.misses += sum(i not in view.resident for i in needed.uses if i not in needed.creates)


def simulate(trace: Trace, machine: TwoTier, policy: Policy) -> Outcome:
    """A step of ``trace`` under ``policy``, from a cold start on to the steady state.

    Raises BudgetTooSmall where an operation's items don't fit beside each other and the static ones.
    """
    return _average(*_settle(trace, machine, policy))


def record(trace: Trace, machine: TwoTier, policy: Policy) -> Timeline:
    """What happens when in the rounds that `simulate` averages. Raises what it raises."""
    run, history = _settle(trace, machine, policy)
    return run.log.timeline(trace, View(trace).absent, (len(history) - 1) * len(trace.ops))


def _settle(trace: Trace, machine: TwoTier, policy: Policy) -> tuple[_Run, list[_Counters]]:
    """A run up to where it has repeated itself, and its counters from before what repeats on, round by round."""
    room = machine.room(trace)
    needed = trace.bytes_of(policy.static) + max(trace.bytes_of(set(op.uses) - policy.static) for op in trace.ops)
    if needed > room:
        raise BudgetTooSmall(machine.budget, trace.transient + needed)
    seconds = [machine.seconds(op) for op in trace.ops]
    run = _Run(trace, machine, policy, seconds, View(trace), free=room, least=room)
    history: list[_Counters] = []
    seen: dict[tuple[object, ...], int] = {}
    for cycle in range(CYCLES + 1):
        history.append(_Counters(**{name: getattr(run.counters, name) for name in _Counters.__slots__}))
        signature = run.signature()
        first = seen.get(signature, cycle)
        if first < cycle and _repeats(history, cycle - first):
            break
        seen[signature] = cycle
        run.cycle()
    else:
        first = CYCLES // 2
    return run, history[min(first, len(history) - 2) :]


def _repeats(history: list[_Counters], period: int) -> bool:
    """Whether the last ``period`` cycles took as long as those before."""
    if len(history) <= 2 * period:
        return False
    then, middle, now = (history[-1 - back].seconds for back in (2 * period, period, 0))
    return math.isclose(now - middle, middle - then, rel_tol=1e-6)


def _average(run: _Run, history: list[_Counters]) -> Outcome:
    then, now = history[0], history[-1]
    steps = (len(history) - 1) * run.trace.steps
    seconds = (now.seconds - then.seconds) / steps
    return Outcome(
        policy=run.policy.name,
        seconds=seconds,
        stall=seconds - sum(run.seconds) / run.trace.steps,
        misses=(now.misses - then.misses) / steps,
        up=(now.up - then.up) / steps,
        down=(now.down - then.down) / steps,
        peak=run.machine.room(run.trace) - run.least,
        cycles=run.view.now // len(run.trace.ops),
    )
