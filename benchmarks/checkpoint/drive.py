"""What a drive can do at most: one large file, from end to end, past the page cache, by threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ciuic_dist.memory.mapping import private

_PART: Final = 4 << 20  # bytes of one call
_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes a second, writing with the fsync at the end; ``direct`` is whether the page cache was left out."""

    write: float
    read: float
    direct: bool


def measure(folder: Path, nbytes: int) -> Limit:
    """Of a new file of ``nbytes``, rounded up to whole parts, which is gone afterwards."""
    path = folder / "limit"
    parts = -(-nbytes // (_PART * _THREADS)) * _THREADS
    buffers = [private(_PART).random_().numpy().data for _ in range(_THREADS)]  # drives may make less of zeros
    file, direct = _opened(path)
    try:

        def rate(move: Callable[[int, memoryview, int], int]) -> float:
            def work(thread: int) -> None:
                for part in range(thread, parts, _THREADS):
                    if move(file, buffers[thread], part * _PART) != _PART:
                        raise OSError(f"{path}: part of {_PART} bytes at {part * _PART} was cut short")

            began = time.perf_counter()
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(work, range(_THREADS)))
            os.fsync(file)
            return parts * _PART / (time.perf_counter() - began)

        write = rate(os.pwrite)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        read = rate(lambda file, buffer, offset: os.preadv(file, [buffer], offset))
    finally:
        os.close(file)
        path.unlink()
    return Limit(write, read, direct)


def _opened(path: Path) -> tuple[int, bool]:
    """Not every file system has O_DIRECT."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError:
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o600), False
