"""What this process has of the machine's memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path


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
        ctypes.CDLL(None).malloc_trim(0)
