"""Reads a file of pages; each is verified whenever it is read."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import Final

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.digests import checksum
from ciuic_dist.checkpoint.errors import corrupt
from ciuic_dist.checkpoint.pages import ALIGNMENT, PAGE_BYTES, Page
from ciuic_dist.compress.lossless import CODECS, RAW, decode
from ciuic_dist.memory.direct import BLOCK, bypass_cache, padded
from ciuic_dist.memory.mapping import private

_ROOM: Final = PAGE_BYTES + 2 * BLOCK + ALIGNMENT
_KEPT: Final = 4
"""Pages of a file: a parameter's, and those of the state that is loaded with it."""


class PageFileReader:
    """Reads pages, each whole, past the page cache; the last few are kept, for who needs a part of them at a time."""

    def __init__(self, path: Path, threads: Executor) -> None:
        """``threads`` read what is begun. Raises CorruptCheckpoint where there is no such file."""
        self._path = path
        self._threads = threads
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise corrupt(path, "it is gone") from None
        self._finalize = weakref.finalize(self, os.close, self._descriptor)
        bypass_cache(self._descriptor)
        self._free: list[memoryview] = []
        self._begun: dict[int, tuple[memoryview, Future[memoryview]]] = {}  # by offset, as below
        self._kept: OrderedDict[int, tuple[memoryview, disk.Buffer]] = OrderedDict()  # the latest last

    def close(self) -> None:
        """Nothing is read any more."""
        self.give_up()
        self._finalize()

    def give_up(self) -> None:
        """What was begun isn't asked for any more."""
        wait([reading for _, reading in self._begun.values()])
        self._free += [room for room, _ in self._begun.values()]
        self._begun.clear()

    def has(self, page: Page) -> bool:
        """Whether it is kept, or being read."""
        return page.offset in self._kept or page.offset in self._begun

    def begin(self, page: Page) -> None:
        """Read a page that is not there yet while the caller goes on; what fails is raised when it is asked for."""
        room = self._room()
        self._begun[page.offset] = (room, self._threads.submit(self._stored, page, room))

    def read(self, page: Page, what: str) -> disk.Buffer:
        """The page's content, until some others are read; ``what`` it is, for errors.

        Raises CorruptCheckpoint where it isn't what was written.
        """
        if page.offset not in self._kept:
            if page.offset not in self._begun:
                self.begin(page)
            room, reading = self._begun[page.offset]
            wait([reading])
            del self._begun[page.offset]
            self._kept[page.offset] = (room, self._content(page, reading.result(), what))
        self._kept.move_to_end(page.offset)
        return self._kept[page.offset][1]

    def _room(self) -> memoryview:
        if self._free:
            return self._free.pop()
        if len(self._kept) >= _KEPT:
            return self._kept.popitem(last=False)[1][0]
        return private(_ROOM).numpy().data

    def _stored(self, page: Page, room: memoryview) -> memoryview:
        """With the zeros behind it."""
        if page.codec not in CODECS:
            raise ValueError(f"{self._path} is stored by {page.codec}, unknown here: use a newer version")
        if page.raw > PAGE_BYTES or page.with_zeros > _ROOM - 2 * BLOCK:
            raise ValueError(
                f"{self._path} has a page of {page.raw} bytes, too large for this version: use a newer one"
            )
        return self._read(page.offset, page.with_zeros, room)

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

    def _content(self, page: Page, stored: memoryview, what: str) -> disk.Buffer:
        if checksum(stored) != page.checksum:
            raise corrupt(self._path, f"the page of {what} at byte {page.offset} has another checksum")
        if page.codec == RAW:
            return stored[: page.stored]
        content = bytearray(page.raw)
        decode(page.codec, stored[: page.stored], content)
        return content
