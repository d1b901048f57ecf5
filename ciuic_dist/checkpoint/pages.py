"""A file of pages: stored end to end, each with a checksum that is verified whenever it is read."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, Self

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.digests import checksum
from ciuic_dist.checkpoint.errors import corrupt
from ciuic_dist.checkpoint.stream import Stream
from ciuic_dist.compress.lossless import CODECS, RAW, decode, encode
from ciuic_dist.memory.direct import BLOCK, bypass_cache, padded

_ALIGNMENT: Final = 64
"""Bytes, a multiple of which a page takes: the values of the next can be used where they are read to."""
PAGE_BYTES: Final = 4 << 20
"""Of the content of a page, at most; a multiple of every dtype's size, so that no value lies in two."""


_ROOM: Final = PAGE_BYTES + 2 * BLOCK + _ALIGNMENT
_KEPT: Final = 4
"""Pages of a file: a parameter's, and those of the state that is loaded with it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Where a page lies in its file, in bytes, and what it is stored by.

    The checksum is that of what is stored and of the zeros behind it, up to where the next page may begin.
    """

    offset: int
    stored: int
    raw: int
    codec: str
    checksum: str


class PageFileWriter:
    """Appends pages to a new file. Several threads may append at the same time."""

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError where there is such a file."""
        self._stream = Stream(path)
        self._lock = Lock()

    def append(self, content: memoryview, itemsize: int | None = None) -> list[Page]:
        """Write bytes as pages, compressed where they are values of ``itemsize`` bytes each."""
        return [self._page(content[at : at + PAGE_BYTES], itemsize) for at in range(0, len(content), PAGE_BYTES)]

    def _page(self, raw: memoryview, itemsize: int | None) -> Page:
        name, stored = (RAW, raw) if itemsize is None else encode(raw, itemsize)
        zeros = bytes(_behind(len(stored)))
        found = checksum(stored, zeros)
        with self._lock:  # another thread's page waits for no more than this
            page = Page(self.nbytes, len(stored), len(raw), name, found)
            self._stream.append(stored)
            self._stream.append(zeros)
        return page

    @property
    def nbytes(self) -> int:
        """Of all that was appended, as it is stored."""
        return self._stream.nbytes

    def finish(self) -> None:
        """All that was appended survives a loss of power; nothing is appended any more."""
        self._stream.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.__exit__()


class PageFileReader:
    """Reads pages, each whole, past the page cache; the last few are kept, for who needs a part of them at a time."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptCheckpoint where there is no such file."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise corrupt(path, "it is gone") from None
        self.close = weakref.finalize(self, os.close, self._descriptor)
        bypass_cache(self._descriptor)
        self._rooms = [mmap.mmap(-1, _ROOM) for _ in range(_KEPT)]
        self._kept: OrderedDict[int, tuple[mmap.mmap, disk.Buffer]] = OrderedDict()  # by offset, the latest last

    def read(self, page: Page, what: str) -> disk.Buffer:
        """The page's content, until some others are read; ``what`` it is, for errors.

        Raises CorruptCheckpoint where it isn't what was written.
        """
        if page.offset not in self._kept:
            room = self._rooms.pop() if self._rooms else self._kept.popitem(last=False)[1][0]
            try:
                self._kept[page.offset] = (room, self._content(page, room, what))
            except BaseException:
                self._rooms.append(room)
                raise
        self._kept.move_to_end(page.offset)
        return self._kept[page.offset][1]

    def _content(self, page: Page, room: mmap.mmap, what: str) -> disk.Buffer:
        if page.codec not in CODECS:
            raise ValueError(f"{self._path} is stored by {page.codec}, unknown here: use a newer version")
        nbytes = page.stored + _behind(page.stored)
        if page.raw > PAGE_BYTES or nbytes > _ROOM - 2 * BLOCK:
            raise ValueError(
                f"{self._path} has a page of {page.raw} bytes, too large for this version: use a newer one"
            )
        place = self._read(page.offset, nbytes, room)
        if checksum(place) != page.checksum:
            raise corrupt(self._path, f"the page of {what} at byte {page.offset} has another checksum")
        if page.codec == RAW:
            return place[: page.stored]
        content = bytearray(page.raw)
        decode(page.codec, place[: page.stored], content)
        return content

    def _read(self, offset: int, nbytes: int, room: mmap.mmap) -> memoryview:
        """In whole blocks of the drive's."""
        first = offset // BLOCK * BLOCK
        start, stop = offset - first, offset - first + nbytes
        done = 0
        while done < stop:
            try:
                count = os.preadv(self._descriptor, [memoryview(room)[done : padded(stop)]], first + done)
            except OSError as error:
                raise corrupt(self._path, f"it can't be read at byte {first + done} ({error.strerror})") from error
            if not count:
                raise corrupt(self._path, f"it ends at byte {first + done}")
            done += count
        return memoryview(room)[start:stop]


def _behind(stored: int) -> int:
    return -stored % _ALIGNMENT
