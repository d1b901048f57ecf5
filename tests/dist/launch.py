"""Runs functions of the tests on real ranks over Gloo: one process a rank, one thread each."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import pickle
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

PATIENCE = 60.0  # seconds until a launch that does not end is killed and fails its test
GRACE = 5.0  # seconds that the other ranks get to end by themselves where a launch has failed already

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["ciuic_dist", "torch.distributed.checkpoint", "peft", "pytest"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one rank's call: its value, or its traceback, or how the process ended instead."""

    value: Any = None
    error: str | None = None


class Ranks:
    """``world`` processes with a launcher's environment variables; each calls what ``run`` is given."""

    def __init__(self, world: int, environment: Mapping[str, str] | None = None) -> None:
        self.alive = True
        self._pipes: list[Connection] = []
        self.processes = []
        described = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        for rank in range(world):
            ours, theirs = _context.Pipe()
            variables = {**described, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environment or {})}
            process = _context.Process(target=_serve, args=(theirs, variables), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is an end of file
            self._pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, patience: float = PATIENCE) -> list[Outcome]:
        """Call ``function(*args)`` on every rank; the processes are killed where one does not come back."""
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        outcomes: dict[int, Outcome] = {}
        deadline = time.monotonic() + patience
        while len(outcomes) < len(self._pipes):
            waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in outcomes}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                outcomes |= {rank: Outcome(error="did not come back and was killed") for rank in waiting.values()}
            for end in ready:
                assert isinstance(end, Connection)
                outcome = outcomes[waiting[end]] = self._receive(waiting[end])
                if outcome.error is not None and self.alive:
                    deadline = min(deadline, time.monotonic() + GRACE)
        if any(outcome.error is not None for outcome in outcomes.values()):
            self.kill()
        return [outcomes[rank] for rank in range(len(self._pipes))]

    def kill(self) -> None:
        """``kill -9`` of what is left."""
        self.alive = False
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def _receive(self, rank: int) -> Outcome:
        try:
            outcome: Outcome = pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, ConnectionError):
            self.processes[rank].join()
            return Outcome(error=f"the process ended with exit code {self.processes[rank].exitcode}")
        return outcome


def launch(function: Callable[..., Any], *args: Any, world: int = 2, shared: bool = True) -> list[Any]:
    """What ``function(*args)`` returns on each of ``world`` ranks, which must all succeed.

    The ranks have called ``cd.init``; they are kept for the next launch. Not ``shared``: collectives only.
    """
    key = (world, shared)
    if key not in _kept or not _kept[key].alive:
        _kept[key] = fresh(world, shared=shared)
    outcomes = _kept[key].run(function, *args)
    failed = [f"rank {rank}: {outcome.error}" for rank, outcome in enumerate(outcomes) if outcome.error is not None]
    assert not failed, "\n".join(failed)
    return [outcome.value for outcome in outcomes]


def fresh(world: int, *, shared: bool = True, timeout: float = 30.0) -> Ranks:
    """Ranks of their own that have called ``cd.init(timeout)``, for tests that harm them."""
    ranks = Ranks(world, {} if shared else {"CIUIC_SHM_DISABLE": "1"})
    outcomes = ranks.run(_init, timeout)
    assert all(outcome.error is None for outcome in outcomes), outcomes
    return ranks


_kept: dict[tuple[int, bool], Ranks] = {}


@atexit.register
def _end() -> None:
    for ranks in _kept.values():
        ranks.kill()


def _init(timeout: float) -> None:
    import ciuic_dist as cd

    cd.init(timeout=timeout)


def _serve(pipe: Connection, variables: dict[str, str]) -> None:
    import torch
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode

    os.environ.update(variables)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    gc.collect()
    gc.freeze()  # what is imported stays; later collections need not look at it
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            outcome = Outcome(value=function(*args))
        except Exception:  # noqa: BLE001 - whatever it is, the test is told
            outcome = Outcome(error=traceback.format_exc())
        gc.collect()
        while _get_current_dispatch_mode_stack():  # a model that goes in mid-step may leave its counting on
            _pop_mode()
        pipe.send_bytes(pickle.dumps(outcome))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
