"""What happens when in a step that was played: operations, transfers, and where the bytes are meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ciuic_dist.planning.levels import Levels
from ciuic_dist.planning.trace import Item, Kind, Trace


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time; seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """An item on its way between the device and the tier below."""

    item: Item
    up: bool
    start: float
    end: float
    nbytes: float
    """The item's; where the time that is looked at has a part of the transfer, that part's."""

    def cut(self, start: float, end: float) -> Iterator[Transfer]:
        """What of it lies between, counted from ``start``, if anything does."""
        first, last = max(self.start, start), min(self.end, end)
        if first < last:
            part = (last - first) / (self.end - self.start)
            yield replace(self, start=first - start, end=last - start, nbytes=self.nbytes * part)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Some seconds of a run, counted from their start."""

    seconds: float
    ops: tuple[Span, ...]
    """One after the other; between them the device waits."""
    device: Levels
    """Bytes of items there, by kind, those under way included."""
    below: Levels
    """Those of items that are in lower tiers only."""
    transfers: tuple[Transfer, ...] = ()
    """In the order in which they begin."""

    def last(self, count: int) -> Timeline:
        """So many operations, each with what it waits for, up to the end."""
        start = self.ops[-count - 1].end if count < len(self.ops) else 0.0
        return Timeline(
            self.seconds - start,
            tuple(Span(op.name, op.start - start, op.end - start) for op in self.ops[-count:]),
            self.device.cut(start, self.seconds),
            self.below.cut(start, self.seconds),
            tuple(part for transfer in self.transfers for part in transfer.cut(start, self.seconds)),
        )


class Place(Enum):
    """Where an item is."""

    DEVICE = auto()
    BELOW = auto()
    NOWHERE = auto()


@dataclass(slots=True)
class Log:
    """What a run of a trace leaves behind: indices of operations and items, and seconds."""

    ops: list[tuple[int, float, float]] = field(default_factory=list)
    """From when to when."""
    transfers: list[tuple[int, bool, float, float]] = field(default_factory=list)
    """Whether up, from when to when."""
    places: list[tuple[float, int, Place]] = field(default_factory=list)
    """When, and where to."""

    def timeline(self, trace: Trace, below: set[int], count: int) -> Timeline:
        """Of the last so many operations of a run that began with these items ``below`` the device."""
        return Timeline(
            self.ops[-1][2],
            tuple(Span(trace.ops[op].name, begun, ended) for op, begun, ended in self.ops),
            self._levels(trace, below, Place.DEVICE),
            self._levels(trace, below, Place.BELOW),
            tuple(
                Transfer(trace.items[item], up, begun, ended, trace.items[item].size)
                for item, up, begun, ended in self.transfers
            ),
        ).last(count)

    def _levels(self, trace: Trace, below: set[int], place: Place) -> Levels:
        where = {item: Place.BELOW if item in below else Place.NOWHERE for item in range(len(trace.items))}
        now = dict.fromkeys(Kind, 0)
        for item, its in where.items():
            now[trace.items[item].kind] += trace.items[item].size * (its is place)
        found = {0.0: tuple(now.values())}
        for moment, item, to in self.places:
            change = (to is place) - (where[item] is place)
            where[item] = to
            now[trace.items[item].kind] += trace.items[item].size * change
            found[moment] = tuple(now.values())
        return Levels(tuple(found), dict(zip(now, zip(*found.values(), strict=True), strict=True)))
