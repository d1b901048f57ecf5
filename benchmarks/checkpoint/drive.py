"""What a drive can do at most: large files, from end to end, past the page cache, by threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ciuic_dist.memory.mapping import private

_PART: Final = 4 << 20  # bytes of one call
_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes a second, writing with the fsync at the end; ``direct`` is whether the page cache was left out."""

    write: float
    read: float
    direct: bool


class _Part(NamedTuple):
    file: int
    offset: int
    nbytes: int


def measure(folder: Path, nbytes: int) -> Limit:
    """Of a new file of ``nbytes``, rounded up to whole parts, which is gone afterwards."""
    path = folder / "limit"
    file, direct = _opened(path, os.O_RDWR | os.O_CREAT)
    parts = [_Part(file, offset, _PART) for offset in range(0, nbytes, _PART)]
    try:
        writing = _seconds(os.pwrite, parts, partial(os.fsync, file))
        reading = _seconds(_read, parts)
    finally:
        os.close(file)
        path.unlink()
    return Limit(len(parts) * _PART / writing, len(parts) * _PART / reading, direct)


def seconds_to_read(files: Sequence[Path]) -> float:
    """That the drive takes for all of ``files``."""
    with ExitStack() as opened:
        parts = []
        for path in files:
            file, _ = _opened(path, os.O_RDONLY)
            opened.callback(os.close, file)
            nbytes = path.stat().st_size
            parts += [_Part(file, offset, min(_PART, nbytes - offset)) for offset in range(0, nbytes, _PART)]
        return _seconds(_read, parts)


def _seconds(
    move: Callable[[int, memoryview, int], int], parts: Sequence[_Part], finish: Callable[[], None] | None = None
) -> float:
    """Of moving all ``parts`` from or to the drive itself, and of what ends that."""
    buffers = [private(_PART).random_().numpy().data for _ in range(_THREADS)]  # drives may make less of zeros

    def work(thread: int) -> None:
        for part in parts[thread::_THREADS]:
            if move(part.file, buffers[thread], part.offset) != part.nbytes:
                raise OSError(f"part of {part.nbytes} bytes at {part.offset} was cut short")

    for file in {part.file for part in parts}:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(work, range(_THREADS)))
    if finish is not None:
        finish()
    return time.perf_counter() - began


def _read(file: int, buffer: memoryview, offset: int) -> int:
    return os.preadv(file, [buffer], offset)


def _opened(path: Path, flags: int) -> tuple[int, bool]:
    """Not every file system has O_DIRECT."""
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError:
        return os.open(path, flags, 0o600), False
