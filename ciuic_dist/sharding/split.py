"""An fp32 master in two halves: the bf16 weight that the model computes with, and the 16 bits below it.

The weight is the nearest bf16, so the other half is a signed correction: as integers, master = weight · 2^16 + low.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_HOST_CHUNK = 1 << 17  # elements; a chunk and its temporaries stay in cache
_DEVICE_CHUNK = 1 << 24  # few launches, small temporaries
_SIGN = -(1 << 31)
_QUIET_NAN = 0x7FC00000


@torch.no_grad()
def split(master: Tensor, weight: Tensor, low: Tensor) -> None:
    """Round ``master`` to ``weight`` and put what ``join`` needs besides into ``low``.

    All three are 1-D and contiguous, of one length and device: fp32, bf16 and int16. Ties go away from zero. Every
    value comes back exactly, those that round to infinity too; a NaN comes back as the quiet NaN of its sign.
    """
    for values, upper, lower in _chunks(master, weight, low):
        bits = values.view(torch.int32)
        if _may_hold_nan(values):  # rounding would carry some into infinity
            bits = torch.where(values.isnan(), bits & _SIGN | _QUIET_NAN, bits)
        lower.copy_(bits)
        upper.view(torch.int16).copy_(bits.add(0x8000).bitwise_right_shift_(16))


@torch.no_grad()
def join(weight: Tensor, low: Tensor, master: Tensor) -> None:
    """Put the fp32 values back that ``split`` took apart; the arguments are as there."""
    for values, upper, lower in _chunks(master, weight, low):
        values.copy_(upper).view(torch.int32).add_(lower)


def _chunks(master: Tensor, weight: Tensor, low: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    size = _HOST_CHUNK if master.device.type == "cpu" else _DEVICE_CHUNK
    return zip(master.split(size), weight.split(size), low.split(size), strict=True)


def _may_hold_nan(values: Tensor) -> bool:
    """False only where there is none: a sum passes a NaN on. Asking a device would wait for it."""
    return values.device.type != "cpu" or bool(values.sum().isnan())
