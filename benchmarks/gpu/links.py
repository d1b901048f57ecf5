"""What the device's links to the host, the host's cores and the drive can do, by the library's own means."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import torch

from benchmarks.gpu.begin import begin
from benchmarks.measure.device import settle
from ciuic_dist.comm.groups import device
from ciuic_dist.estimate.drive import DriveRates, measure_drive
from ciuic_dist.estimate.probe import probe
from ciuic_dist.memory.accelerator import Accelerator
from ciuic_dist.memory.device import Device, HostDevice
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.transfer import Ticket, Transfers
from ciuic_dist.planning.flight import DRIVE_THREADS
from ciuic_dist.planning.machine import Machine

_RUNS: Final = 3
_TIMEOUT: Final = 60.0  # seconds for one page
_ADAM_BYTES: Final = 28  # of a parameter: it, two moments and its gradient are read, all but that are written


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes: of pages, of all pages together, of the drive's page and file; parameters of the update."""

    pages: list[int]
    copied: int
    page: int
    written: int
    updated: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Bytes a second with pages of one size; `both` is the sum of both directions at once.

    `registering`: seconds for a byte of host memory, to clear and register it.
    """

    page: int
    up: float
    down: float
    both: float
    registering: float


@dataclass(frozen=True, slots=True)
class Links:
    """`update`: bytes a second of AdamW on the host, fused, on `threads` threads; `machine`: as plans have it."""

    copies: list[Copies]
    update: float
    threads: int
    drive: DriveRates
    machine: Machine


def copies(page: int, nbytes: int) -> Copies:
    """Move ``nbytes`` in pages, each way and both, with the threads and streams that the engine has."""
    where = device()
    mine: Device = HostDevice() if where.type == "cpu" else Accelerator(where)
    count = nbytes // page
    began = time.perf_counter()
    tier = RamTier("host", page, count, mine.host_buffer)
    registering = time.perf_counter() - began
    slab = mine.slab(count, page)
    pages = [slab.view(slot, page).fill_(1) for slot in range(count)]
    slots = [tier.pool.alloc() for _ in pages]
    with closing(Transfers(DRIVE_THREADS, _TIMEOUT, mine)) as transfers, closing(tier):

        def store(index: int) -> Ticket:
            return transfers.store(tier, slots[index], pages[index], "a page")

        def fetch(index: int) -> Ticket:
            return transfers.fetch(tier, slots[index], pages[index], "a page")

        down, up, both = (_rate(moves, count) * page for moves in ([store], [fetch], [store, fetch]))
    mine.close()
    return Copies(page, up, down, both, registering / nbytes)


def _rate(moves: Sequence[Callable[[int], Ticket]], count: int) -> float:
    """Pages a second, each moved by the next of ``moves``; the first run doesn't count."""
    taken = []
    for _ in range(1 + _RUNS):
        settle()
        began = time.perf_counter()
        for ticket in [moves[index % len(moves)](index) for index in range(count)]:
            ticket.wait()
        taken.append(time.perf_counter() - began)
    return count / median(taken[1:])


def update(count: int) -> float:
    """Bytes a second that AdamW of ``count`` parameters on the host reads and writes."""
    parameter = torch.zeros(count, requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    taken = []
    for _ in range(1 + _RUNS):
        began = time.perf_counter()
        optimizer.step()
        taken.append(time.perf_counter() - began)
    return count * _ADAM_BYTES / median(taken[1:])


def main(sizes: str, folder: str, result: str) -> None:
    """Measure with `sizes` (JSON) and write all of it to `result`."""
    begin()
    wanted = Sizes(**json.loads(sizes))
    measured = Links(
        copies=[copies(page, wanted.copied) for page in wanted.pages],
        update=update(wanted.updated),
        threads=torch.get_num_threads(),
        drive=measure_drive(Path(folder), wanted.page, wanted.written),
        machine=probe(),
    )
    Path(result).write_text(json.dumps(asdict(measured)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
