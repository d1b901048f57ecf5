"""What drive and memory can do while all ranks use them, through what the engine itself uses: FileTier in threads."""

from __future__ import annotations

import json
import mmap
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.spill.bound import Rates
from ciuic_dist.memory.file import FileTier

_THREADS: Final = 4  # as many as the engine has
_COPIED: Final = 64 << 20  # bytes

Move = Callable[[int, Tensor], None]  # one page, to or from a slot


def measure(folder: str, page_bytes: int, nbytes: int) -> Rates:
    """Of this rank. The pages are written twice: only the second time is as in training, over what is there."""
    pages = max(nbytes // page_bytes // _THREADS, 2) * _THREADS
    tier = FileTier(Path(folder), page_bytes, pages)
    buffers = [_random_page(page_bytes) for _ in range(_THREADS)]
    slots = [tier.pool.alloc() for _ in range(pages)]

    def write(slot: int, buffer: Tensor) -> None:
        tier.write(slot, buffer, "a page")

    def read(slot: int, buffer: Tensor) -> None:
        tier.read(slot, buffer, "a page")

    def rate(*moves: Move) -> float:
        """Each thread has its own slots and makes the next of `moves` with them."""

        def work(thread: int) -> None:
            for slot in slots[thread::_THREADS]:
                moves[thread % len(moves)](slot, buffers[thread])

        with ThreadPoolExecutor(_THREADS) as threads:
            dist.barrier()
            began = time.perf_counter()
            list(threads.map(work, range(_THREADS)))
            return pages * page_bytes / (time.perf_counter() - began)

    rate(write)
    rates = Rates(write=rate(write), read=rate(read), both=rate(write, read), copy=_copying())
    tier.close()
    return rates


def _random_page(page_bytes: int) -> Tensor:
    """As the engine's: aligned for direct input and output. Random, as drives may make less of zeros."""
    page = torch.frombuffer(mmap.mmap(-1, page_bytes), dtype=torch.uint8)
    return page.random_()


def _copying() -> float:
    source, target = torch.ones(_COPIED, dtype=torch.uint8), torch.ones(_COPIED, dtype=torch.uint8)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(4):
        target.copy_(source)
    return 4 * _COPIED / (time.perf_counter() - began)


def main(folder: str, page_bytes: str, nbytes: str, result: str) -> None:
    """Write this rank's rates to `result`."""
    dist.init_process_group("gloo")
    Path(result).write_text(json.dumps(asdict(measure(folder, int(page_bytes), int(nbytes)))), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
