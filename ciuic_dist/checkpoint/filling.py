"""Copies a part of a stored box into a tensor, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.manifest import Entry
from ciuic_dist.checkpoint.opened import dtype_of
from ciuic_dist.checkpoint.pages import Page
from ciuic_dist.sharding.layout import Box, boxes


class Read(Protocol):
    """Gives a page's content; ``once``: nobody else asks for it."""

    def __call__(self, page: Page, *, once: bool) -> disk.Buffer: ...


class Use(NamedTuple):
    """Of a page whose values begin at ``start`` in an entry's box; ``whole``: of all of them."""

    page: Page
    start: int
    whole: bool


def fill(target: Tensor, read: Read, entry: Entry, offsets: Sequence[int]) -> None:
    """Give ``target`` the values from ``offsets`` on in the entry's box."""
    for page, start, whole in pages_of(entry, offsets, target.shape):
        assert entry.box is not None
        values = torch.frombuffer(read(page, once=whole), dtype=dtype_of(entry))
        for box in boxes(entry.box.sizes, start, start + len(values)):
            _copy_overlap(target, offsets, values, box)


def pages_of(entry: Entry, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[Use]:
    """Those with values of the part of the entry's box that begins at ``offsets``."""
    if entry.box is None or not prod(sizes):
        return
    itemsize, shape = dtype_of(entry).itemsize, entry.box.sizes
    first = _position(shape, offsets)
    last = _position(shape, [offset + size - 1 for offset, size in zip(offsets, sizes, strict=True)])
    start, gapless = 0, last + 1 - first == prod(sizes)
    for page in entry.pages:
        stop = start + page.raw // itemsize
        if first < stop and start <= last:
            yield Use(page, start, gapless and first <= start and stop <= last + 1)
        start = stop


def _position(shape: Sequence[int], indices: Sequence[int]) -> int:
    """Of an element, when rows lie one after the other."""
    return sum(index * prod(shape[dim + 1 :]) for dim, index in enumerate(indices))


def _copy_overlap(target: Tensor, offsets: Sequence[int], values: Tensor, box: Box) -> None:
    """Copy what of ``box``, a part of ``values``, lies in ``target``, which begins at ``offsets``."""
    into, out_of = [], []
    for offset, size, low, length in zip(offsets, target.shape, box.offsets, box.sizes, strict=True):
        start, stop = max(offset, low), min(offset + size, low + length)
        if start >= stop:
            return
        into.append(slice(start - offset, stop - offset))
        out_of.append(slice(start - low, stop - low))
    source = values[box.start : box.start + prod(box.sizes)].view(box.sizes)
    target[tuple(into)].copy_(source[tuple(out_of)])
