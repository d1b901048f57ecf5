"""The files of pages of a checkpoint; what is going to be asked for is read ahead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, NamedTuple

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.page_file import ROOM_BYTES, PageFileReader
from ciuic_dist.checkpoint.pages import Page
from ciuic_dist.memory.mapping import private

_OPEN: Final = 4
"""Files at a time."""
_KEPT: Final = 6
"""Pages, for who needs a part of them at a time: up to three values of a parameter's state, each in two pages."""
_AHEAD: Final = 2
"""Pages that are read while another is verified and copied: a drive wants more than one at a time."""

_Place = tuple[Path, int]
"""A page's file and offset."""


class _Reading(NamedTuple):
    file: PageFileReader
    room: memoryview
    stored: Future[memoryview]


class PageFiles:
    """Reads pages; of those that are expected, the next are on their way when one is asked for."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, PageFileReader] = OrderedDict()  # the latest last, as below
        self._threads = ThreadPoolExecutor(_AHEAD, "checkpoint-reader")
        self._coming: Iterator[tuple[Path, Page]] | None = None
        self._begun: dict[_Place, _Reading] = {}  # and not yet asked for
        self._kept: OrderedDict[_Place, tuple[memoryview, disk.Buffer]] = OrderedDict()  # with the room it is in
        self._free: list[memoryview] = []  # the last was in use last: the processor's cache has it
        self._used_up: _Place | None = None  # of those that are kept

    def expect(self, coming: Iterable[tuple[Path, Page]]) -> None:
        """What is asked for next, in that order; asking for anything else is slower, and as good."""
        self._coming = iter(coming)
        wait([reading.stored for reading in self._begun.values()])
        self._free += [reading.room for reading in self._begun.values()]
        self._begun.clear()

    @property
    def expecting(self) -> bool:
        """Whether more is known to come."""
        return self._coming is not None

    def read(self, path: Path, page: Page, what: str, *, once: bool = False) -> disk.Buffer:
        """The content of a page of the file at ``path``; ``what`` it is, for errors.

        It is there until some others are read or, if it is to be used ``once``, the next. Raises CorruptCheckpoint
        where it isn't what was written.
        """
        place = (path, page.offset)
        self._free_used_up()
        try:
            while self._coming is not None and len(self._begun.keys() - {place}) < _AHEAD:
                self._begin_next(self._coming)
            if place not in self._kept:
                self._keep(path, page, what)
        except BaseException:
            self._coming = None  # it holds who reads, who holds this: all would stay until a garbage collection
            raise
        self._kept.move_to_end(place)
        self._used_up = place if once else None
        return self._kept[place][1]

    def _free_used_up(self) -> None:
        if self._used_up is not None:
            room, _ = self._kept.pop(self._used_up)
            self._free.append(room)
            self._used_up = None

    def _begin_next(self, coming: Iterator[tuple[Path, Page]]) -> None:
        for path, page in coming:
            if (path, page.offset) not in self._kept and (path, page.offset) not in self._begun:
                self._begin(path, page)
                return
        self._coming = None

    def _begin(self, path: Path, page: Page) -> None:
        """Read a page while the caller goes on; what fails is raised when it is asked for."""
        file, room = self._file(path), self._room()
        self._begun[path, page.offset] = _Reading(file, room, self._threads.submit(file.stored, page, room))

    def _keep(self, path: Path, page: Page, what: str) -> None:
        place = (path, page.offset)
        if place not in self._begun:
            self._begin(path, page)
        file, room, stored = self._begun[place]
        wait([stored])
        del self._begun[place]
        try:
            self._kept[place] = (room, file.content(page, stored.result(), what))
        finally:
            del stored  # whose error refers to this frame

    def _room(self) -> memoryview:
        if self._free:
            return self._free.pop()
        if len(self._kept) >= _KEPT:
            return self._kept.popitem(last=False)[1][0]
        return private(ROOM_BYTES).numpy().data

    def _file(self, path: Path) -> PageFileReader:
        if path not in self._open:
            if len(self._open) == _OPEN:
                self._open.popitem(last=False)
            self._open[path] = PageFileReader(path)
        self._open.move_to_end(path)
        return self._open[path]
