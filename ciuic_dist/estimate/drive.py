"""What a drive can do while all ranks use it, through what the engine itself uses: FileTier in threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ciuic_dist.comm.groups import meet
from ciuic_dist.memory.file import FileTier
from ciuic_dist.memory.mapping import private
from ciuic_dist.planning.flight import DRIVE_THREADS

Move = Callable[[int, Tensor], None]  # one page, to or from a slot


@dataclass(frozen=True, slots=True)
class DriveRates:
    """Bytes a second of one rank, all being at it; ``both`` is reading and writing at once.

    ``moving``: processor seconds a byte, all threads together, reading and writing alike.
    """

    read: float
    write: float
    both: float
    moving: float


def measure_drive(folder: Path, page_bytes: int, nbytes: int) -> DriveRates:
    """Of ``nbytes``, a file that is gone afterwards. All ranks call it at once.

    The pages are written twice: only the second time is as in training, over what is there.
    """
    pages = max(nbytes // page_bytes // DRIVE_THREADS, 2) * DRIVE_THREADS
    tier = FileTier(folder, page_bytes, pages)
    buffers = [private(page_bytes).random_() for _ in range(DRIVE_THREADS)]  # drives may make less of zeros
    slots = [tier.pool.alloc() for _ in range(pages)]

    def write(slot: int, buffer: Tensor) -> None:
        tier.write(slot, buffer, "a page")

    def read(slot: int, buffer: Tensor) -> None:
        tier.read(slot, buffer, "a page")

    def rate(*moves: Move) -> float:
        """Each thread has its own slots and makes the next of ``moves`` with them."""

        def work(thread: int) -> None:
            for slot in slots[thread::DRIVE_THREADS]:
                moves[thread % len(moves)](slot, buffers[thread])

        with ThreadPoolExecutor(DRIVE_THREADS) as threads:
            meet()
            began = time.perf_counter()
            list(threads.map(work, range(DRIVE_THREADS)))
            return pages * page_bytes / (time.perf_counter() - began)

    rate(write)
    began = time.process_time()
    rates = {"write": rate(write), "read": rate(read), "both": rate(write, read)}
    busy = time.process_time() - began
    tier.close()
    return DriveRates(**rates, moving=busy / (len(rates) * pages * page_bytes))
