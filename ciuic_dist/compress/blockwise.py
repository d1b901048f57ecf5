"""fp32 values in 8 bits, with a scale for each block.

Dettmers and others, 8-bit Optimizers via Block-wise Quantization (ICLR 2022, arXiv:2110.02861): a block is divided by
its largest magnitude, and each quotient becomes the nearest of 255 or 256 codes, which lie densest near zero. So an
outlier costs precision in its own block only.

In both codes the decade from 10^-e to 10^(1-e) is divided evenly, into half as many parts as the one above, and 1 is
a code, so that a block's largest value is kept exactly. Differently from the paper's, the signed code is
symmetric, and the unsigned one rounds nothing to zero: Adam would divide by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 128
"""Values that have a scale in common."""

BLOCK_BYTES = BLOCK + 4
"""Of their codes and their scale."""

_CHUNK = 1024
"""Blocks that are worked on at once, so that temporary values stay in the processor's cache."""

_SMALLEST_SCALE = 2.0**-100
"""Of a block of smaller values too: products with the smallest code are normal numbers still."""

_CELLS = 1 << 16


@dataclass(frozen=True, eq=False)
class Code:
    """What quotients may be: ``values``, up to 256 of them, ascending from -1 or 0 to 1; ``signed``: from -1."""

    values: Tensor
    signed: bool

    @cached_property
    def cells(self) -> tuple[Tensor, Tensor]:
        """Of the numbers with each upper half of bits: the lowest code, and the greatest number that it is nearest to.

        They lie so close together that the next code is the only other one. Two look-ups are ten times as quick as
        ``torch.bucketize``.
        """
        upper = torch.arange(_CELLS, dtype=torch.int32) << 16
        ends = torch.stack([upper, upper | 0xFFFF]).view(torch.float32)
        middles = (self.values[1:] + self.values[:-1]) / 2
        if not self.signed:
            middles[0] = 0.0
        limits = torch.cat([middles, middles.new_tensor([torch.inf])])
        lowest = torch.bucketize(ends.amin(0), middles)
        return lowest.to(torch.uint8), limits[lowest]


def _decades(first: int, count: int) -> Tensor:
    """The positive codes: 2^first in the decade below 1, half as many in the next, ``count`` decades, ascending."""
    decades = []
    for exponent in range(count):
        parts = 1 << (first - exponent)
        decades.append((0.1 + 0.9 * torch.arange(1, parts + 1, dtype=torch.float64) / parts) / 10**exponent)
    return torch.cat(decades[::-1])


def _signed() -> Code:
    positive = _decades(6, 7)
    return Code(torch.cat([-positive.flip(0), torch.zeros(1), positive]).float(), signed=True)


def _unsigned() -> Code:
    return Code(torch.cat([torch.zeros(1), _decades(7, 8)]).float(), signed=False)


SIGNED = _signed()
"""127 codes of each sign, down to 1e-6, and zero."""

UNSIGNED = _unsigned()
"""255 codes down to 1e-7, and zero."""


def quantize(values: Tensor, code: Code, codes: Tensor, scales: Tensor) -> None:
    """Write ``values``, fp32, into ``codes``, uint8, a row a block of ``BLOCK``, and ``scales``, fp32, one a block.

    What ``dequantize`` makes of these comes out the same, bit for bit, when it is quantised again. Zero stays zero.
    A block comes back as NaN throughout where a value is not finite, or is negative and ``code`` is not signed.
    """
    tensors = values.view(-1, BLOCK), codes, scales
    for chunk in zip(*(tensor.split(_CHUNK) for tensor in tensors), strict=True):
        _quantize(code, *chunk)


def _quantize(code: Code, blocks: Tensor, codes: Tensor, scales: Tensor) -> None:
    largest = blocks.abs().amax(1)
    wrong = largest.isfinite().logical_not_()
    if not code.signed:
        wrong |= blocks.amin(1) < 0
    scales.copy_(largest.clamp_min_(_SMALLEST_SCALE).masked_fill_(wrong, torch.nan))
    quotients = (blocks / scales[:, None]).view(-1)
    cell = (quotients.view(torch.int32) >> 16).bitwise_and_(_CELLS - 1)
    lowest, limits = (table.to(blocks.device) for table in code.cells)
    beyond = quotients > limits.index_select(0, cell)
    torch.add(lowest.index_select(0, cell), beyond.view(torch.uint8), out=codes.view(-1))


def dequantize(codes: Tensor, scales: Tensor, code: Code, values: Tensor) -> None:
    """Write what ``quantize`` made ``codes`` and ``scales`` of into ``values``, nearly as it was."""
    tensors = codes, scales, values.view(-1, BLOCK)
    table = code.values.to(values.device)
    for chosen, largest, blocks in zip(*(tensor.split(_CHUNK) for tensor in tensors), strict=True):
        torch.index_select(table, 0, chosen.view(-1).int(), out=blocks.view(-1))
        blocks.mul_(largest[:, None])
