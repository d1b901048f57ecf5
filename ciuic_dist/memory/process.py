"""What this process has of the machine's memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from ciuic_dist.memory.libc import libc

_MUCH: Final = 16 << 20
"""Bytes. Giving back takes up to a millisecond, and a hundred where the heap has as many thousand holes."""


def anonymous_bytes() -> int:
    """Of the heap, stacks and private buffers that are in memory now; shared memory and files not among them."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def return_freed_memory() -> None:
    """Have the C library give back what it keeps of freed memory; only glibc knows how.

    It keeps blocks of up to 32 MiB for later: a process holds what its start needed once, in pieces that fit
    nothing else.
    """
    with suppress(AttributeError):
        libc().malloc_trim(0)


class Freed:
    """Has what was freed given back, whenever it is much."""

    def __init__(self) -> None:
        self._nbytes = 0

    def add(self, nbytes: int) -> None:
        """So much of the heap has been freed."""
        self._nbytes += nbytes
        if self._nbytes >= _MUCH:
            self._nbytes = 0
            return_freed_memory()
