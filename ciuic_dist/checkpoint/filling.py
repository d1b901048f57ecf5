"""Copies a part of a stored box into a tensor, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.manifest import Entry
from ciuic_dist.checkpoint.opened import dtype_of
from ciuic_dist.checkpoint.pages import Page
from ciuic_dist.sharding.layout import Box, boxes


def fill(target: Tensor, read: Callable[[Page], disk.Buffer], entry: Entry, offsets: Sequence[int]) -> None:
    """Give ``target`` the values from ``offsets`` on in the entry's box; ``read`` gives a page's content."""
    for page, start in pages_of(entry, offsets, target.shape):
        assert entry.box is not None
        values = torch.frombuffer(read(page), dtype=dtype_of(entry))
        for box in boxes(entry.box.sizes, start, start + len(values)):
            _copy_overlap(target, offsets, values, box)


def pages_of(entry: Entry, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[Page, int]]:
    """Those with values of the part of the entry's box that begins at ``offsets``, and where each begins in the box."""
    if entry.box is None or not prod(sizes):
        return
    itemsize, shape = dtype_of(entry).itemsize, entry.box.sizes
    first = _position(shape, offsets)
    last = _position(shape, [offset + size - 1 for offset, size in zip(offsets, sizes, strict=True)])
    start = 0
    for page in entry.pages:
        stop = start + page.raw // itemsize
        if first < stop and start <= last:
            yield page, start
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
