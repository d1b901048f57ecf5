"""One run: fresh processes, one a rank, with the variables that torchrun would set."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure.hosts import Host

ROOT = Path(__file__).parents[2]
_TAIL = 2000  # characters of a failed rank's output to show


class RunError(RuntimeError):
    """A rank failed or was not done in time; the message has the end of what it printed."""


def launch(
    command: Sequence[str], world: int, hosts: Sequence[Host], limit: float, *, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Run `python -m COMMAND... RESULT` as `world` ranks; the JSON that each left in its file RESULT.

    Raises RunError after `limit` seconds, or when the first rank fails.
    """
    places = [hosts[rank * len(hosts) // world] for rank in range(world)]
    port = str(_free_port())
    with TemporaryDirectory(prefix="ranks-") as name, ExitStack() as stack:
        folder = Path(name)
        processes = []
        for rank, host in enumerate(places):
            local = rank - places.index(host)
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(places.count(host)),
                "MASTER_ADDR": places[0].address,
                "MASTER_PORT": port,
            }
            if device == "cpu":
                variables["CUDA_VISIBLE_DEVICES"] = ""
            process = _start(command, host, variables, folder / str(rank))
            stack.callback(_end, process)
            processes.append(process)
        _await(processes, folder, limit)
        return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


def _start(command: Sequence[str], host: Host, variables: dict[str, str], stem: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | host.environment | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with stem.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [*host.prefix, sys.executable, "-m", *command, f"{stem}.json"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _await(processes: Sequence[subprocess.Popen[bytes]], folder: Path, limit: float) -> None:
    """Returns when all have ended well; kills the rest as soon as one has not."""
    with ThreadPoolExecutor(len(processes)) as pool, ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
        ranks = {pool.submit(process.wait): rank for rank, process in enumerate(processes)}
        try:
            for ended in as_completed(ranks, timeout=limit):
                if code := ended.result():
                    log = folder / f"{ranks[ended]}.log"
                    output = log.read_text(encoding="utf-8", errors="replace").strip()
                    raise RunError(f"rank {ranks[ended]} ended with code {code}: {output[-_TAIL:]}")
        except TimeoutError as error:
            raise RunError(f"the ranks were not done after {limit:g} s") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
