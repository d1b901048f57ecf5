"""A column of fp32 values that takes a little more than a byte an element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ciuic_dist.compress.blockwise import BLOCK, BLOCK_BYTES, Code, dequantize, quantize
from ciuic_dist.sharding.columns import Column, opened


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks ``first`` to ``last`` of the ``blocks`` of a page, which begins at byte ``low`` of the column."""

    low: int
    blocks: int
    first: int
    last: int

    @property
    def high(self) -> int:
        """Where the page's content ends."""
        return self.low + self.blocks * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Where the blocks of ``numel`` values lie: in each page the codes of as many as fit it, then their scales.

    ``page_bytes`` None: all is one page.
    """

    numel: int
    page_bytes: int | None

    @property
    def _blocks(self) -> int:
        return self.numel // BLOCK

    @property
    def _page(self) -> tuple[int, int]:
        """Bytes of a page, and the blocks in it."""
        size = self.page_bytes or self._blocks * BLOCK_BYTES
        return size, size // BLOCK_BYTES

    @property
    def nbytes(self) -> int:
        """Of the column."""
        size, blocks = self._page
        pages, rest = divmod(self._blocks, blocks)
        return pages * size + rest * BLOCK_BYTES

    def stretches(self, low: int, high: int) -> Iterator[Stretch]:
        """Where values ``low`` to ``high``, which are whole blocks, lie."""
        size, blocks = self._page
        block, end = low // BLOCK, high // BLOCK
        while block < end:
            page, first = divmod(block, blocks)
            here = min(blocks, self._blocks - page * blocks)
            last = min(here, first + end - block)
            yield Stretch(page * size, here, first, last)
            block += last - first


class QuantizedColumn:
    """Blocks of values in 8 bits, in the bytes of another column. A span that is open is a copy in fp32.

    Shards and spans are whole blocks of the flat, so that values don't depend on the number of ranks, nor on the
    budget.
    """

    dtype = torch.float32

    def __init__(self, stored: Column, place: BlockPlace, code: Code, device: torch.device) -> None:
        self._stored = stored
        self._place = place
        self._code = code
        self._device = device
        self._written: set[int] = set()
        self._open: dict[int, Tensor] = {}

    def open(self, low: int, high: int) -> Tensor:
        """Zeros before the span was first written: elements that are no parameter's share blocks with others."""
        values = torch.zeros(high - low, dtype=self.dtype, device=self._device)
        if low in self._written:
            for part, codes, scales in self._parts(low, high, values, dirty=False):
                dequantize(codes, scales, self._code, part)
        self._open[low] = values
        return values

    def close(self, low: int, high: int, *, dirty: bool) -> None:
        """Quantise what was written."""
        values = self._open.pop(low)
        if dirty:
            for part, codes, scales in self._parts(low, high, values, dirty=True):
                quantize(part, self._code, codes, scales)
            self._written.add(low)

    def drop(self) -> None:
        """Spans are zeros again."""
        self._written.clear()
        self._stored.drop()

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self._stored.nbytes

    def _parts(self, low: int, high: int, values: Tensor, *, dirty: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The span ``values`` page by page, with the codes and scales there."""
        done = 0
        for stretch in self._place.stretches(low, high):
            with opened(self._stored, stretch.low, stretch.high, dirty=dirty) as page:
                codes = page[: stretch.blocks * BLOCK].view(-1, BLOCK)[stretch.first : stretch.last]
                scales = page[stretch.blocks * BLOCK :].view(torch.float32)[stretch.first : stretch.last]
                part = values[done : done + codes.numel()]
                yield part, codes, scales
                done += part.numel()
