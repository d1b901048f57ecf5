"""A file that is written from its beginning to its end, past the page cache where the file system can."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

from ciuic_dist.checkpoint import disk
from ciuic_dist.memory.direct import bypass_cache, padded
from ciuic_dist.memory.mapping import private

BUFFER_BYTES: Final = 4 << 20
"""Whole blocks of a drive's, enough to keep it busy; more leaves the processor's caches."""


class Stream:
    """Appends to a new file."""

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError where there is such a file."""
        self._descriptor = disk.create(path)
        bypass_cache(self._descriptor)
        self._buffer = private(BUFFER_BYTES).numpy().data[:BUFFER_BYTES]  # it gives a page at the least
        self._filled = 0
        self.nbytes = 0

    def append(self, content: disk.Buffer) -> None:
        """Write all of ``content``."""
        rest = memoryview(content).cast("B")
        self.nbytes += len(rest)
        while rest:
            count = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> None:
        """All that was appended survives a loss of power; nothing is appended any more."""
        if self._filled:
            self._flush()
        disk.cut(self._descriptor, self.nbytes)
        disk.sync(self._descriptor)

    def _flush(self) -> None:
        disk.write(self._descriptor, self._buffer[: padded(self._filled)])
        self._filled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
