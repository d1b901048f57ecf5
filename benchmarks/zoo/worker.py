"""One rank: train job after job in one process group, and report each to the parent."""

from __future__ import annotations

import gc
import logging
import os
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.zoo.catalogue import catalogue
from benchmarks.zoo.engines import ENGINES, start
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.training import STEPS, Training, inputs, reference
from benchmarks.zoo.verdict import Job, Verdict, compare


def work(rank: int, port: int, jobs: list[Job], reports: Connection, log: Path) -> None:
    """Send a Verdict per job (None from other ranks than 0), or the traceback of the first that fails, and end."""
    world = jobs[0].world
    quieten(log)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    try:
        entries = catalogue()
        start(jobs[0].engine, world)
        known: dict[str, Training] = {}  # the reference of the latest architecture, for its other stages
        for job in jobs:
            entry = entries[job.name]
            if rank == 0 and job.name not in known:
                known = {job.name: reference(entry, world)}
            reports.send(train(entry, job, rank, known.get(job.name)))
            gc.collect()
    except Exception:  # noqa: BLE001 - whatever it was, it is the verdict on this job
        reports.send(f"rank {rank}: {traceback.format_exc()}")


def train(entry: Entry, job: Job, rank: int, expected: Training | None) -> Verdict | None:
    """Collective: train as the reference did; on rank 0, which has the reference, the comparison with it."""
    started = time.perf_counter()
    trainer = ENGINES[job.engine](entry.make(), job.stage)
    losses = []
    for step in range(STEPS):
        mine = torch.tensor(trainer.step(inputs(entry, step, rank)), dtype=torch.float64)
        everyones = [torch.empty_like(mine) for _ in range(job.world)]
        dist.all_gather(everyones, mine)
        losses.append([loss.item() for loss in everyones])
    parameters = trainer.parameters()
    seconds = time.perf_counter() - started
    return compare(job, Training(losses, parameters), expected, seconds) if expected else None


def quieten(log: Path) -> None:
    """Send what libraries print to `log`, which the parent shows if this process dies."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
