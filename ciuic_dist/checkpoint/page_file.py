"""Reads a file of pages; each is verified whenever it is read."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Final

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.digests import checksum
from ciuic_dist.checkpoint.errors import corrupt
from ciuic_dist.checkpoint.pages import ALIGNMENT, PAGE_BYTES, Page
from ciuic_dist.compress.lossless import CODECS, RAW, decode
from ciuic_dist.memory.direct import BLOCK, bypass_cache, padded

ROOM_BYTES: Final = PAGE_BYTES + 2 * BLOCK + ALIGNMENT
"""Of the memory that any page can be read into."""


class PageFileReader:
    """Reads pages, each whole, past the page cache. Several threads may read at the same time."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptCheckpoint where there is no such file."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise corrupt(path, "it is gone") from None
        weakref.finalize(self, os.close, self._descriptor)  # after the last thread that reads
        bypass_cache(self._descriptor)

    def stored(self, page: Page, room: memoryview) -> memoryview:
        """What is stored of a page and the zeros behind it, unverified, somewhere in ``room``.

        Raises CorruptCheckpoint where it can't be read, ValueError where this version is too old for it.
        """
        if page.codec not in CODECS:
            raise ValueError(f"{self._path} is stored by {page.codec}, unknown here: use a newer version")
        if page.raw > PAGE_BYTES or page.with_zeros > PAGE_BYTES + ALIGNMENT:
            raise ValueError(
                f"{self._path} has a page of {page.raw} bytes, too large for this version: use a newer one"
            )
        return self._read(page.offset, page.with_zeros, room)

    def content(self, page: Page, stored: memoryview, what: str) -> disk.Buffer:
        """A page's content of what is ``stored``, in its place where that is no other; ``what`` it is, for errors.

        Raises CorruptCheckpoint where it isn't what was written.
        """
        if checksum(stored) != page.checksum:
            raise corrupt(self._path, f"the page of {what} at byte {page.offset} has another checksum")
        if page.codec == RAW:
            return stored[: page.stored]
        content = bytearray(page.raw)
        decode(page.codec, stored[: page.stored], content)
        return content

    def _read(self, offset: int, nbytes: int, room: memoryview) -> memoryview:
        """In whole blocks of the drive's."""
        first = offset // BLOCK * BLOCK
        start, stop = offset - first, offset - first + nbytes
        done = 0
        while done < stop:
            try:
                count = os.preadv(self._descriptor, [room[done : padded(stop)]], first + done)
            except OSError as error:
                raise corrupt(self._path, f"it can't be read at byte {first + done} ({error.strerror})") from error
            if not count:
                raise corrupt(self._path, f"it ends at byte {first + done}")
            done += count
        return room[start:stop]
