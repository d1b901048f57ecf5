"""Reading and writing files past the page cache, which costs a processor a second a GB and memory that counts."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

BLOCK: Final = 4096
"""Bytes, of which addresses, offsets and lengths have to be multiples."""


def bypass_cache(descriptor: int) -> bool:
    """Switch a file that can be read to O_DIRECT; False where its system refuses that, at once or in use."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        os.preadv(descriptor, [mmap.mmap(-1, BLOCK)], 0)
    except OSError:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        return False
    return True


def padded(nbytes: int) -> int:
    """The whole blocks that so many bytes take."""
    return -(-nbytes // BLOCK) * BLOCK
