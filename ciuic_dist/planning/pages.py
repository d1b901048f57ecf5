"""How large pages are, and how many of them the engine needs at the least."""

from __future__ import annotations

from typing import Final

STATE_SLOTS: Final = 9
"""The least that optimizer state needs: for one span of AdamW with a split master, for what comes, for what leaves."""
GRADIENT_SLOTS: Final = 3
"""The least that gradients need: in use, coming, leaving."""
PAGED_SHARD_MULTIPLE: Final = 4096
"""Elements of which a shard is a whole number where it comes and goes: then it is whole pages of memory."""
PAGES_OF_A_FLAT: Final = 2
"""Of each rank, at least: a flat is what is exchanged at once, so units are divided, but a shard takes whole pages."""
LARGEST_ON_HOSTS: Final = 4 << 20
"""Bytes of a page where the device is the host's memory."""
LARGEST_ON_ACCELERATORS: Final = 32 << 20
"""Bytes: links from registered memory are busy with these."""
_SMALLEST: Final = 8 << 10
_OF_A_BUDGET: Final = 192


def page_bytes(budget: int, largest: int) -> int:
    """A power of two, so that the budget is a good many pages."""
    size = _SMALLEST
    while size < largest and size * 2 * _OF_A_BUDGET <= budget:
        size *= 2
    return size
