"""A tier in a file on a local drive, past the page cache where the file system allows it."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, floor
from pathlib import Path

from torch import Tensor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.direct import BLOCK, bypass_cache, padded
from ciuic_dist.memory.mapping import HUGE_PAGE, private
from ciuic_dist.memory.pool import SlotPool
from ciuic_dist.memory.tier import PageError, check_access, check_length, slots_usage
from ciuic_dist.monitor.units import size_text
from ciuic_dist.monitor.usage import TierUsage

_BOUNCE = HUGE_PAGE
"""Bytes, one buffer a thread, for what is not so aligned; a drive gets smaller pages of memory one by one."""


class FileTier:
    """A Tier in one file without a name: the kernel frees its space when the process ends, however it ends.

    ``bytes_written`` and ``bytes_read`` count content, for the drive's endurance.
    """

    name = "nvme"

    def __init__(
        self, folder: Path, page_bytes: int, slots: int, make_buffer: Callable[[int], Tensor] = private
    ) -> None:
        """Reserves the space at once. ``make_buffer``: of so many bytes, for pages on their way from or to a device.

        Raises BudgetError where ``folder`` has too little, OSError where no file can be made there, ValueError for
        ``page_bytes`` that are no multiple of 4096 or no slots.
        """
        from xxhash import xxh3_64  # here: `import ciuic_dist` does without it

        if slots < 1 or page_bytes < 1 or page_bytes % BLOCK:
            raise ValueError(f"{slots} slots of {page_bytes} bytes: there must be one, of a multiple of {BLOCK} bytes")
        self.page_bytes = page_bytes
        self.pool = SlotPool(slots)
        self.bytes_written = 0
        self.bytes_read = 0
        self._counting = threading.Lock()
        self._hash = xxh3_64  # in parts: unlike the one-shot function of xxhash 3, that releases the GIL
        self._written: dict[int, tuple[int, int]] = {}  # bytes and checksum, by slot
        self._make_buffer = make_buffer
        self._buffers = threading.local()
        self._description = f"{self.name} (the unnamed file in {folder})"
        self._file = _open_unnamed(folder)
        self._close = weakref.finalize(self, os.close, self._file)
        try:
            _reserve(self._file, page_bytes * slots, folder)
        except BaseException:
            self.close()
            raise
        self._direct = bypass_cache(self._file)

    def write(self, slot: int, source: Tensor, name: str) -> None:
        """See Tier."""
        check_access(self.pool, slot, source, self.page_bytes)
        self._written.pop(slot, None)
        on_host = self._on_host(source)
        if on_host is not source:
            on_host.copy_(source)
        checksum = self._hash()
        with self._naming_page(f"{name} can't be written to"):
            for content, buffer, offset in self._parts(slot, on_host):
                if buffer is not content:
                    buffer[: content.numel()].copy_(content)
                checksum.update(_view(buffer[: content.numel()]))
                self._move_all(os.pwritev, buffer, offset)
        self._written[slot] = source.numel(), checksum.intdigest()
        with self._counting:
            self.bytes_written += source.numel()

    def read(self, slot: int, into: Tensor, name: str) -> None:
        """See Tier; also raises PageError where the content is not what was written."""
        check_access(self.pool, slot, into, self.page_bytes)
        length, checksum = self._written.get(slot, (None, 0))
        check_length(length, into, self._description, name)
        on_host = self._on_host(into)
        found = self._hash()
        with self._naming_page(f"{name} can't be read from"):
            for content, buffer, offset in self._parts(slot, on_host):
                self._move_all(os.preadv, buffer, offset)
                found.update(_view(buffer[: content.numel()]))
                if buffer is not content:
                    content.copy_(buffer[: content.numel()])
        if found.intdigest() != checksum:
            raise PageError(
                f"{name} was read from {self._description} at byte {slot * self.page_bytes} and is not what was "
                f"written there: the drive or its memory is faulty, or something else wrote to the file"
            )
        if on_host is not into:
            into.copy_(on_host)
        with self._counting:
            self.bytes_read += into.numel()

    def usage(self) -> TierUsage:
        """See Tier."""
        return slots_usage(self.pool, self.page_bytes)

    def close(self) -> None:
        """See Tier."""
        self._close()
        self._file = -1  # the number may soon be another file's

    @contextmanager
    def _naming_page(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PageError(f"{what} {self._description}: {error.strerror}") from error

    def _parts(self, slot: int, content: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Ranges of ``content``, the buffer to move each through (itself where aligned), and its place in the file."""
        start, length = slot * self.page_bytes, content.numel()
        aligned = 0 if content.data_ptr() % BLOCK else length - length % BLOCK
        bulk = aligned if self._direct else length
        if bulk:
            part = content[:bulk]
            yield part, part, start
        for done in range(bulk, length, _BOUNCE):
            part = content[done : done + _BOUNCE]
            yield part, self._bounce_buffer()[: padded(part.numel())], start + done

    def _bounce_buffer(self) -> Tensor:
        if not hasattr(self._buffers, "bounce"):
            self._buffers.bounce = private(_BOUNCE)
        buffer: Tensor = self._buffers.bounce
        return buffer

    def _on_host(self, content: Tensor) -> Tensor:
        """A buffer for what lies on a device, one a thread; else ``content`` itself."""
        if content.device.type == "cpu":
            return content
        if not hasattr(self._buffers, "page"):
            self._buffers.page = self._make_buffer(self.page_bytes)
        buffer: Tensor = self._buffers.page
        return buffer[: content.numel()]

    def _move_all(self, operation: Callable[[int, list[memoryview], int], int], buffer: Tensor, offset: int) -> None:
        """Call ``operation`` until it has moved all of ``buffer``; raises OSError."""
        view, done = _view(buffer), 0
        while done < len(view):
            try:  # Python itself repeats what a signal interrupts
                moved = operation(self._file, [view[done:]], offset + done)
            except BlockingIOError:
                continue
            if self._direct:
                moved -= moved % BLOCK  # go on from a whole block
            if moved == 0:
                raise OSError(errno.EIO, f"it ends at byte {offset + done}")
            done += moved
        if not self._direct:
            os.posix_fadvise(self._file, offset, len(view), os.POSIX_FADV_DONTNEED)


def _view(buffer: Tensor) -> memoryview:
    """Valid as long as the buffer. Not by numpy: then torch refuses to resize the storage, which homes do."""
    return memoryview((ctypes.c_ubyte * buffer.numel()).from_address(buffer.data_ptr())).cast("B")


def _open_unnamed(folder: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE | os.O_EXCL, 0o600)
    except OSError:  # not every file system has it; what else is wrong shows again
        descriptor, path = tempfile.mkstemp(prefix="ciuic-", dir=folder)
        Path(path).unlink()
        return descriptor


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    """Raises BudgetError where there is no room."""
    volume = os.fstatvfs(descriptor)
    free = volume.f_bavail * volume.f_frsize
    if size > free or not _allocate(descriptor, size):
        raise BudgetError(
            f"memory.nvme: this rank needs {size_text(size, ceil)} in {folder}, which has {size_text(free, floor)} "
            f"free: make room or give it less"
        )


def _allocate(descriptor: int, size: int) -> bool:
    """False where the drive or a quota is full. A file system that can't reserve may still run full later."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return False
        os.ftruncate(descriptor, size)
    return True
