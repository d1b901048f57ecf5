"""Copies a part of a stored box into a tensor, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ciuic_dist.checkpoint.manifest import Entry
from ciuic_dist.checkpoint.opened import dtype_of
from ciuic_dist.checkpoint.pages import PageFileReader
from ciuic_dist.sharding.layout import Box, boxes


def fill(target: Tensor, file: PageFileReader, entry: Entry, offsets: Sequence[int]) -> None:
    """Give ``target`` the values from ``offsets`` on in the entry's box.

    Only pages with such values are read, each whole. Raises CorruptCheckpoint where one doesn't verify.
    """
    if entry.box is None or not target.numel():
        return
    dtype, shape = dtype_of(entry), entry.box.sizes
    first = _position(shape, offsets)
    last = _position(shape, [offset + size - 1 for offset, size in zip(offsets, target.shape, strict=True)])
    start = 0
    for page in entry.pages:
        stop = start + page.raw // dtype.itemsize
        if first < stop and start <= last:
            values = torch.frombuffer(file.read(page, entry.name), dtype=dtype)
            for box in boxes(shape, start, stop):
                _copy_overlap(target, offsets, values, box)
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
