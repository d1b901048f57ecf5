"""What a lower tier of memory does, whatever it is made of."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ciuic_dist.memory.pool import SlotPool
from ciuic_dist.monitor.usage import TierUsage


class PageError(RuntimeError):
    """A page could not be written, or can't be read back as it was written; names the tier and the page."""


class Tier(Protocol):
    """Slots of ``page_bytes`` each that hold the contents of pages; ``name`` is "host" or "nvme".

    Slots are taken from ``pool`` and given back to it by the user. ``write`` and ``read`` block, and may run in
    several threads at once for different slots. Buffers are 1-D contiguous uint8 tensors of 1 to ``page_bytes``
    elements (ValueError otherwise), on any device, at any address. A slot that is not in use raises PageMisuse.
    """

    name: str
    page_bytes: int
    pool: SlotPool

    def write(self, slot: int, source: Tensor, name: str) -> None:
        """Put ``source`` into ``slot``; ``name`` is the page's. Raises PageError, and then the slot holds nothing."""

    def read(self, slot: int, into: Tensor, name: str) -> None:
        """Fill ``into``, as long as what was written. Raises PageError; what ``into`` holds then means nothing."""

    def usage(self) -> TierUsage:
        """Whole slots, in bytes."""

    def close(self) -> None:
        """Free the memory; nothing may be under way. Again is allowed."""


def slots_usage(pool: SlotPool, page_bytes: int) -> TierUsage:
    """Bytes of the slots in use, of the most ever in use, and of all."""
    return TierUsage(used=pool.used * page_bytes, peak=pool.peak * page_bytes, budget=pool.slots * page_bytes)


def check_access(pool: SlotPool, slot: int, buffer: Tensor, page_bytes: int) -> None:
    """Raises PageMisuse for a slot not in use, ValueError for a buffer that no tier takes."""
    pool.check_used(slot)
    plain = buffer.dtype is torch.uint8 and buffer.dim() == 1 and buffer.is_contiguous() and not buffer.is_meta
    if not plain or not 1 <= buffer.numel() <= page_bytes:
        raise ValueError(
            f"a page is a 1-D contiguous uint8 tensor of 1 to {page_bytes} elements, not "
            f"{tuple(buffer.shape)} of {buffer.dtype} on {buffer.device}"
        )


def check_length(written: int | None, buffer: Tensor, tier: str, name: str) -> None:
    """Raises PageError where ``buffer`` is not as long as what was ``written`` (None: nothing was)."""
    if written is None:
        raise PageError(f"{name} can't be read from {tier}: nothing was written there")
    if written != buffer.numel():
        raise PageError(f"{name} can't be read from {tier}: {written} bytes were written, not {buffer.numel()}")
