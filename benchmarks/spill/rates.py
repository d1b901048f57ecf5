"""What drive and memory can do while all ranks use them, through what the engine itself uses: FileTier in threads."""

from __future__ import annotations

import json
import mmap
import sys
import time
from collections.abc import Callable, Sequence
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


def measure(folder: str, page_bytes: int, nbytes: int) -> Rates:
    """Of this rank. The file's pages are written twice: only the second time is like that of a training's."""
    slots = max(2 * _THREADS, nbytes // page_bytes)
    tier = FileTier(Path(folder), page_bytes, slots)
    buffers = [_page(page_bytes) for _ in range(slots and _THREADS)]
    taken = [tier.pool.take() for _ in range(slots)]

    def write(index: int) -> None:
        tier.write(taken[index], buffers[index % _THREADS], "a page")

    def read(index: int) -> None:
        tier.read(taken[index], buffers[index % _THREADS], "a page")

    def both(index: int) -> None:
        (write if index // _THREADS % 2 else read)(index)

    everything = range(slots)
    _rate(write, everything, page_bytes)
    rates = Rates(
        write=_rate(write, everything, page_bytes),
        read=_rate(read, everything, page_bytes),
        both=_rate(both, everything, page_bytes),
        copy=_copying(),
    )
    tier.close()
    return rates
