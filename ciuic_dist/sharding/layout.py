"""Where each parameter lies in a unit's flat space, and which part of it a rank owns. Integers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

ALIGNMENT = 128
"""Elements. Every parameter starts on a cache line, as it would in memory of its own, so that vector kernels give the
same bits; a piece that a shard's edge cuts off starts on one too. And the rows whose norms are taken at once (norms.py)
are the same however a unit is divided into flats."""

SHARD_MULTIPLE = 128
"""Elements. A shard is a whole number of these, so that collectives and kernels see aligned memory."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter's place: ``numel`` elements from ``offset`` on, rows one after the other."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one parameter that lies in one shard: elements ``start`` to ``stop`` of the parameter."""

    index: int
    """Which slot of the layout."""
    start: int
    stop: int
    shard_offset: int
    """Where the piece begins in the shard."""

    @property
    def numel(self) -> int:
        """Elements of the piece."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Parameters end to end, padded so that ``world`` equal shards hold them."""

    slots: tuple[Slot, ...]
    world: int
    shard_numel: int

    @property
    def numel(self) -> int:
        """Elements of the flat buffer, padding included."""
        return self.world * self.shard_numel

    def pieces(self, rank: int, low: int = 0, high: int | None = None) -> Iterator[Piece]:
        """What elements ``low`` to ``high`` of shard ``rank`` hold, in order; empty pieces are left out."""
        origin = rank * self.shard_numel
        first, last = origin + low, origin + (self.shard_numel if high is None else high)
        for index, slot in enumerate(self.slots):
            start, stop = max(first, slot.offset), min(last, slot.offset + slot.numel)
            if start < stop:
                yield Piece(index, start - slot.offset, stop - slot.offset, start - origin)


def lay_out(
    parameters: Sequence[tuple[str, tuple[int, ...]]],
    world: int,
    alignment: int = ALIGNMENT,
    shard_multiple: int = SHARD_MULTIPLE,
) -> FlatLayout:
    """Place parameters, given as (name, shape), one after the other for ``world`` shards."""
    slots: list[Slot] = []
    offset = 0
    for name, shape in parameters:
        slot = Slot(name, shape, offset)
        slots.append(slot)
        offset += round_up(slot.numel, alignment)
    return FlatLayout(tuple(slots), world, max(round_up(-(-offset // world), shard_multiple), shard_multiple))


def divide(sizes: Sequence[int], least: int) -> Iterator[slice]:
    """Cut a sequence of ``sizes`` in bytes into runs, each as short as makes ``least`` bytes together."""
    first, total, left = 0, 0, sum(sizes)
    for index, size in enumerate(sizes):
        total += size
        left -= size
        if total >= least and left >= least:
            yield slice(first, index + 1)
            first, total = index + 1, 0
    if first < len(sizes):
        yield slice(first, len(sizes))


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of a parameter: ``offsets`` and ``sizes`` a dimension, ``start`` in the flat piece."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Cut the flat range ``[start, stop)`` of a contiguous tensor into boxes, in order.

    A range is a part of a row, whole rows, and a part of a row; each part is a range of one dimension less.
    """
    yield from _boxes(shape, start, stop, (), 0)


def _boxes(shape: tuple[int, ...], start: int, stop: int, prefix: tuple[int, ...], origin: int) -> Iterator[Box]:
    if start >= stop:
        return
    if not shape:
        yield Box(prefix, (1,) * len(prefix), origin)
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row
    lead = (1,) * len(prefix)
    if first > last:  # inside one row
        yield from _boxes(shape[1:], start - last * row, stop - last * row, (*prefix, last), origin)
        return
    if start < first * row:
        yield from _boxes(shape[1:], start - (first - 1) * row, row, (*prefix, first - 1), origin)
    if first < last:
        offsets = (*prefix, first, *(0 for _ in shape[1:]))
        yield Box(offsets, (*lead, last - first, *shape[1:]), origin + first * row - start)
    if last * row < stop:
        yield from _boxes(shape[1:], 0, stop - last * row, (*prefix, last), origin + last * row - start)
