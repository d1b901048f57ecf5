"""A file that is written from its beginning to its end, past the page cache where the file system can."""

from __future__ import annotations

import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, Self

from ciuic_dist.checkpoint import disk
from ciuic_dist.comm.groups import timeout_seconds
from ciuic_dist.memory.direct import bypass_cache, padded

BUFFER_BYTES: Final = 4 << 20
"""Whole blocks of a drive's, enough to keep it busy; more leaves the processor's caches."""
BUFFERS: Final = 4
"""One is filled while a thread writes the others: an update that writes a unit now and then hardly waits."""


class Stream:
    """Appends to a new file, of which a thread writes what was appended, up to some buffers behind.

    What appends or finishes raises what writing raised, perhaps of what was appended before.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError where there is such a file."""
        self._path = path
        self._descriptor = disk.create(path)
        bypass_cache(self._descriptor)
        self._thread = ThreadPoolExecutor(1, "ciuic-stream")
        self._free = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(BUFFERS)]
        self._behind: deque[tuple[mmap.mmap, Future[None]]] = deque()
        self._buffer = self._free.pop()
        self._filled = 0
        self.nbytes = 0

    def append(self, content: disk.Buffer) -> None:
        """Write all of ``content``, which may change when this returns."""
        rest = memoryview(content).cast("B")
        self.nbytes += len(rest)
        while rest:
            count = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == len(self._buffer):
                self._flush()
                self._buffer = self._free.pop() if self._free else self._oldest()

    def finish(self) -> None:
        """All that was appended survives a loss of power; nothing is appended any more."""
        if self._filled:
            self._flush()
        while self._behind:
            self._oldest()
        disk.cut(self._descriptor, self.nbytes)
        disk.sync(self._descriptor)

    def _flush(self) -> None:
        self._behind.append((self._buffer, self._thread.submit(self._write, self._buffer, padded(self._filled))))
        self._filled = 0

    def _write(self, buffer: mmap.mmap, nbytes: int) -> None:
        with memoryview(buffer) as whole:
            disk.write(self._descriptor, whole[:nbytes])

    def _oldest(self) -> mmap.mmap:
        """The buffer, when it is written."""
        buffer, written = self._behind.popleft()
        if not wait([written], timeout_seconds()).done:
            raise TimeoutError(f"waited {timeout_seconds():g} s to write to {self._path}: the drive doesn't answer")
        written.result()
        return buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for _, written in self._behind:
            written.cancel()
        self._thread.submit(os.close, self._descriptor)  # by the thread: it may be writing still
        self._thread.shutdown(wait=False)
