"""A file of pages: stored end to end, each with a checksum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, Self

from ciuic_dist.checkpoint.digests import checksum
from ciuic_dist.checkpoint.stream import Stream
from ciuic_dist.compress.lossless import RAW, encode

ALIGNMENT: Final = 64
"""Bytes, a multiple of which a page takes: the values of the next can be used where they are read to."""
PAGE_BYTES: Final = 4 << 20
"""Of the content of a page, at most; a multiple of every dtype's size, so that no value lies in two."""


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

    @property
    def with_zeros(self) -> int:
        """Of what is stored and the zeros behind it."""
        return self.stored + _zeros_behind(self.stored)


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
        zeros = bytes(_zeros_behind(len(stored)))
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


def _zeros_behind(stored: int) -> int:
    return -stored % ALIGNMENT
