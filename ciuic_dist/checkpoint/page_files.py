"""The files of pages of a checkpoint; what is going to be asked for is read ahead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.page_file import PageFileReader
from ciuic_dist.checkpoint.pages import Page

_OPEN: Final = 4
"""Files at a time; each has memory for a few pages."""
_AHEAD: Final = 2
"""Pages that are read while another is verified and copied: a drive wants more than one at a time."""


class PageFiles:
    """Reads pages; of those that are expected, the next are on their way when one is asked for."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, PageFileReader] = OrderedDict()  # the latest last
        self._threads = ThreadPoolExecutor(_AHEAD, "checkpoint-reader")
        self._coming: Iterator[tuple[Path, Page]] | None = None
        self._ahead: set[tuple[Path, int]] = set()  # begun and not yet asked for, by offset

    def expect(self, coming: Iterable[tuple[Path, Page]]) -> None:
        """What is asked for next, in that order; asking for anything else is slower, and as good."""
        self._coming = iter(coming)
        self._ahead.clear()
        for file in self._open.values():
            file.give_up()

    @property
    def expecting(self) -> bool:
        """Whether more is known to come."""
        return self._coming is not None

    def read(self, path: Path, page: Page, what: str) -> disk.Buffer:
        """As ``PageFileReader.read`` of the file at ``path``, which is opened where it isn't."""
        asked = {(path, page.offset)}
        try:
            while self._coming is not None and len(self._ahead - asked) < _AHEAD:
                self._begin_next(self._coming)
            self._ahead -= asked
            return self._file(path).read(page, what)
        except BaseException:
            self._coming = None  # it holds who reads, who holds this: all would stay until a garbage collection
            raise

    def _begin_next(self, coming: Iterator[tuple[Path, Page]]) -> None:
        for path, page in coming:
            if not (file := self._file(path)).has(page):
                file.begin(page)
                self._ahead.add((path, page.offset))
                return
        self._coming = None

    def _file(self, path: Path) -> PageFileReader:
        if path not in self._open:
            if len(self._open) == _OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = PageFileReader(path, self._threads)
        self._open.move_to_end(path)
        return self._open[path]
