"""Run jobs in groups of processes that outlive good architectures, and are replaced after a bad one."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from benchmarks.zoo.verdict import Job, Verdict
from benchmarks.zoo.worker import work

LIMIT = 60.0  # seconds for one job
START_UP = 120.0  # seconds more for the first one of a group: imports
IMPORTS = ["benchmarks.zoo.worker", "transformers.modeling_utils", "transformers.models.llama.modeling_llama"]


def sweep(jobs: Sequence[Job], limit: float = LIMIT) -> Generator[Verdict]:
    """Yield a verdict per job, in order. All jobs must have one engine and one world."""
    remaining = list(jobs)
    while remaining:
        with Group(remaining) as group:
            patience = START_UP + limit
            while remaining:
                verdict = group.next(remaining.pop(0), patience)
                patience = limit
                yield verdict
                if verdict.status in ("crash", "timeout"):
                    break


class Group:
    """The processes of one process group, busy with a list of jobs; killed on exit."""

    def __init__(self, jobs: list[Job]) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("forkserver")  # so that a new group need not import everything again
        context.set_forkserver_preload(IMPORTS)
        self._folder = tempfile.TemporaryDirectory(prefix="zoo-")
        port = free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(jobs[0].world):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (rank, port, jobs, theirs, self._log(rank))
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that its end is seen when the process ends
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._folder.cleanup()

    def next(self, job: Job, patience: float) -> Verdict:
        """Wait until every rank has reported on `job`, one has failed, or `patience` seconds are over."""
        deadline = time.monotonic() + patience
        waiting = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        verdict: Verdict | None = None
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                late = sorted(waiting.values())
                return Verdict(job, "timeout", error=f"ranks {late} were not done after {patience:.0f} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    report: Verdict | str | None = pipe.recv()
                except EOFError:
                    return Verdict(job, "crash", error=f"rank {rank} died: {self._log(rank).read_text()[-2000:]}")
                if isinstance(report, str):
                    return Verdict(job, "crash", error=report)
                verdict = report or verdict
        assert verdict is not None, "rank 0 reports a verdict"
        return verdict

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"{rank}.log"


def free_port() -> int:
    """A TCP port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
