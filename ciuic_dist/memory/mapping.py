"""Ranges of addresses, and what memory lies behind them."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress

import torch
from torch import Tensor

from ciuic_dist.memory.libc import libc

HUGE_PAGE = 2 << 20

_PROT_NONE = 0
_MAP_FIXED = 0x10  # Linux; mmap doesn't have it
_MADV_REMOVE = 9  # for all who map the file


def private(nbytes: int) -> Tensor:
    """A range of this process alone as a 1-D uint8 tensor, without memory until it is written to.

    A large one begins at a huge page and lies on such as far as it fills them.
    """
    nbytes = max(nbytes, mmap.PAGESIZE)
    huge = nbytes >= HUGE_PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    mapped = mmap.mmap(-1, nbytes + huge * HUGE_PAGE, flags=flags)
    begin = 0
    if huge:
        begin = -torch.frombuffer(mapped, dtype=torch.uint8).data_ptr() % HUGE_PAGE
        _advise_huge_pages(mapped, begin, nbytes - nbytes % HUGE_PAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8, count=nbytes, offset=begin)


def shared(descriptor: int, nbytes: int) -> Tensor:
    """The first bytes of a file, as they are for everyone who maps it."""
    mapped = mmap.mmap(descriptor, max(nbytes, 1))
    _advise_huge_pages(mapped, 0, len(mapped))
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _advise_huge_pages(mapped: mmap.mmap, begin: int, nbytes: int) -> None:
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # kernels without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE, begin, nbytes)


def anonymous_file(nbytes: int) -> int:
    """The descriptor of memory that is a file without a name, for this user only; it is freed with its last user."""
    descriptor = os.memfd_create("ciuic-pool", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, max(nbytes, 1))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def show_at(address: int, nbytes: int, descriptor: int, offset: int) -> None:
    """Put what a file has from ``offset`` on at ``address``, in place of what was there. Raises OSError."""
    flags = mmap.MAP_SHARED | _MAP_FIXED | mmap.MAP_POPULATE
    found = libc().mmap(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, offset)
    if found != address:
        _raise("shown")


def hide_at(address: int, nbytes: int) -> None:
    """Make every access an error of the processor's; what is there stays. Raises OSError."""
    if libc().mprotect(address, nbytes, _PROT_NONE):
        _raise("hidden")


def reveal_at(address: int, nbytes: int) -> None:
    """Undo ``hide_at``. Raises OSError."""
    if libc().mprotect(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE):
        _raise("revealed")


def give_back(memory: Tensor, *, from_file: bool) -> None:
    """Free what lies behind whole pages of ``private`` or, ``from_file``, ``shared`` memory; it reads as zeros then.

    Raises OSError.
    """
    advice = _MADV_REMOVE if from_file else mmap.MADV_DONTNEED
    if libc().madvise(memory.data_ptr(), memory.numel(), advice):
        _raise("given back")


def _raise(what: str) -> None:
    error = ctypes.get_errno()
    raise OSError(error, f"memory can't be {what}: {os.strerror(error)}")


_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)
