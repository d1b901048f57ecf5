"""Training jobs as real processes: each rank a process of its own, as a launcher would start it."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path

PATIENCE = 120.0  # seconds until a job that does not end is killed and fails its test

# Small enough for some milliseconds a step; gpt2 has dropout, unless these tests switch it off.
TINY = (
    "+model=gpt2",
    "model.overrides={n_layer: 2, n_embd: 32, n_head: 2, n_positions: 32}",
    "data.sequence_length=16",
    f"data.path={__file__}",
    "train.validation_samples=12",
    "train.warmup_steps=2",
    "run.plan=null",
)
NO_DROPOUT = (
    "model.overrides.resid_pdrop=0",
    "model.overrides.embd_pdrop=0",
    "model.overrides.attn_pdrop=0",
)

_fresh = multiprocessing.get_context("spawn")
_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(
    [
        "ciuic_dist.loop.run",
        "ciuic_dist.engines.fsdp2",
        "hydra",
        "matplotlib.backends.backend_agg",
        "transformers.models.gpt2.modeling_gpt2",
    ]
)


@dataclass(frozen=True)
class Ended:
    """What a job left: the exit code, stdout and stderr of each rank."""

    codes: list[int | None]
    out: list[str]
    err: list[str]


class Job:
    """``python -m ciuic_dist.train`` on ``world`` ranks, in ``folder``.

    Rank r also gets the arguments ``only[r]``, and takes the package from ``elsewhere[r]``.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        world: int = 1,
        only: Mapping[int, tuple[str, ...]] | None = None,
        elsewhere: Mapping[int, Path] | None = None,
        log: str = "rank",
    ) -> None:
        self._logs = [folder / f"{log}-{rank}" for rank in range(world)]
        port = free_port()
        self.ranks: list[ForkServerProcess | SpawnProcess] = []
        for rank in range(world):
            environment = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(world)}
            if world > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            other = (elsewhere or {}).get(rank)
            mine = (*arguments, *(only or {}).get(rank, ()))
            process = (_fresh if other else _warm).Process(
                target=_rank, args=(folder, self._logs[rank], environment, mine, other)
            )
            process.start()
            self.ranks.append(process)

    def wait(self) -> Ended:
        """The end of all ranks."""
        deadline = time.monotonic() + PATIENCE
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(self.ranks) if process.is_alive()]
        self.kill()
        ended = Ended(
            [process.exitcode for process in self.ranks],
            [log.with_suffix(".out").read_text() for log in self._logs],
            [log.with_suffix(".err").read_text() for log in self._logs],
        )
        assert not late, f"ranks {late} did not end: {ended}"
        return ended

    def kill(self) -> None:
        """``kill -9`` of every rank."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; fails where the job ends before."""
        while not condition():
            assert all(process.is_alive() for process in self.ranks), f"the job ended too early: {self.wait()}"
            time.sleep(0.005)


def train(folder: Path, *arguments: str, world: int = 1) -> Ended:
    """A job that has to succeed."""
    ended = Job(folder, *arguments, world=world).wait()
    assert ended.codes == [0] * world, ended
    return ended


def losses(run: Path) -> list[float]:
    """The training losses in a run's metrics file, which has to have each step once, in order."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def steps_recorded(run: Path) -> int:
    """Lines of a run's metrics file; 0 before there is one."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def checkpoints(run: Path) -> list[str]:
    """Names in a run's checkpoint folder."""
    return sorted(entry.name for entry in (run / "checkpoints").iterdir())


def _rank(
    folder: Path, log: Path, environment: dict[str, str], arguments: tuple[str, ...], elsewhere: Path | None
) -> None:
    for name, descriptor in ((".out", 1), (".err", 2)):
        os.dup2(os.open(log.with_suffix(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    if elsewhere:
        sys.path.insert(0, str(elsewhere))
    from ciuic_dist.train import main

    sys.exit(main(arguments))


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
