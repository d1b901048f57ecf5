"""Addresses that stay while the memory behind them comes and goes."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

HUGE_PAGE = 2 << 20


class Mapping:
    """A mapped range as the 1-D uint8 tensor ``memory``; parts of it can be given back and read as zeros then."""

    def __init__(self, mapped: mmap.mmap, *, shared: bool) -> None:
        self._mapped = mapped
        self._discard = mmap.MADV_REMOVE if shared else mmap.MADV_DONTNEED
        if len(mapped) >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # kernels without huge pages
                mapped.madvise(mmap.MADV_HUGEPAGE)
        self.memory = torch.frombuffer(mapped, dtype=torch.uint8)

    def discard(self, start: int, nbytes: int) -> None:
        """Give the memory of bytes ``start`` on back, for all processes that map it; both are whole pages."""
        if nbytes:
            self._mapped.madvise(self._discard, start, nbytes)


def private(nbytes: int) -> Mapping:
    """A range of this process alone, without memory until it is written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return Mapping(mmap.mmap(-1, max(nbytes, mmap.PAGESIZE), flags=flags), shared=False)
