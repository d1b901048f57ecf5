"""Stop signals to a run alone and behind its launchers: once for a checkpoint, twice to end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import ciuic_dist
from tests.dist.train_jobs import NO_DROPOUT, PATIENCE, TINY, Job, checkpoints, free_port, losses, steps_recorded, train

STEPS = 24
JOB = (*TINY, *NO_DROPOUT, "run.name=run", f"train.steps={STEPS}", "train.checkpoint_every=1000")
RANKS = ("--nproc-per-node", "2", "-m", "ciuic_dist.train")
PLAIN = "torch.distributed.run"
OURS = "ciuic_dist.torchrun"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder, *JOB, world=2)
    return losses(folder / "runs" / "run")


def launch(
    module: str, folder: Path, *job: str, options: tuple[str, ...] = ("--standalone",)
) -> subprocess.Popen[bytes]:
    """``job`` on two ranks, started in ``folder`` by a torchrun; its output is in the file launcher.err."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(ciuic_dist.__file__).parents[1])}
    with (folder / "launcher.err").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *options, *RANKS, *job],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_until(condition: Callable[[], bool], launcher: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert launcher.poll() is None, "the launcher ended too early"
        assert time.monotonic() < deadline, f"waited {PATIENCE} s"
        time.sleep(0.005)


def reachable(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def signal_until_it_ends(number: signal.Signals, process: int, ended: Callable[[], bool]) -> None:
    """More than one request, however quickly the first of them is heard."""
    deadline = time.monotonic() + PATIENCE
    while not ended():
        assert time.monotonic() < deadline, f"{number.name} did not end it in {PATIENCE} s"
        os.kill(process, number)
        time.sleep(0.05)


def saved(folder: Path) -> int:
    """The step of the only checkpoint, which is the last one recorded."""
    run = folder / "runs" / "run"
    assert checkpoints(run) == [f"step-{steps_recorded(run):06d}"]
    return steps_recorded(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_twice_ends_a_rank_that_waits_for_one_that_hangs_and_that_one_is_told(
    number: signal.Signals, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    job = Job(tmp_path, *JOB, world=2)
    job.wait_until(lambda: steps_recorded(run) > 1)
    first, second = (process.pid or 0 for process in job.ranks)
    os.kill(second, signal.SIGSTOP)
    signal_until_it_ends(number, first, lambda: not job.ranks[0].is_alive())
    os.kill(second, signal.SIGCONT)
    ended = job.wait()
    assert ended.codes == [128 + number, 1], ended
    assert ended.err[0] == f"{number.name} again: leaving at once, without a checkpoint\n"
    assert f"rank 0 (process {first}) ended" in ended.err[1]
    assert checkpoints(run) == []


@pytest.mark.slow
def test_torchrun_passes_sigterm_on_and_the_run_goes_on_from_there(uninterrupted: list[float], tmp_path: Path) -> None:
    launcher = launch(PLAIN, tmp_path, *JOB)
    wait_until(lambda: steps_recorded(tmp_path / "runs" / "run") > 3, launcher)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(PATIENCE) == 1
    assert 3 < saved(tmp_path) < STEPS
    train(tmp_path, *JOB, world=2)
    assert losses(tmp_path / "runs" / "run") == uninterrupted


@pytest.mark.slow
def test_our_torchrun_hands_on_signals_and_the_exit_code(uninterrupted: list[float], tmp_path: Path) -> None:
    launcher = launch(OURS, tmp_path, *JOB)
    wait_until(lambda: steps_recorded(tmp_path / "runs" / "run") > 3, launcher)
    # As Slurm does: every process of the step gets it, and then the ranks again from torchrun.
    for process in [*psutil.Process(launcher.pid).children(), psutil.Process(launcher.pid)]:
        process.send_signal(signal.SIGUSR1)  # which torchrun would die of
    said = (tmp_path / "launcher.err").read_text
    assert launcher.wait(PATIENCE) == 75, said()
    assert "Traceback" not in said()
    assert 3 < saved(tmp_path) < STEPS
    assert launch(OURS, tmp_path, *JOB).wait(PATIENCE) == 0, said()
    assert losses(tmp_path / "runs" / "run") == uninterrupted


@pytest.mark.slow
def test_our_torchrun_ends_with_its_ranks_when_it_is_asked_twice(tmp_path: Path) -> None:
    launcher = launch(OURS, tmp_path, *JOB, "train.steps=1000000")
    wait_until(lambda: steps_recorded(tmp_path / "runs" / "run") > 1, launcher)
    ranks = psutil.Process(launcher.pid).children()
    for rank in ranks:
        rank.suspend()
    launcher.terminate()
    ranks[0].resume()  # and waits for the other one
    signal_until_it_ends(signal.SIGTERM, launcher.pid, lambda: launcher.poll() is not None or not ranks[0].is_running())
    ranks[1].kill()
    assert launcher.wait(PATIENCE) == 128 + signal.SIGTERM
    assert checkpoints(tmp_path / "runs" / "run") == []


def test_our_torchrun_without_ranks_ends_at_once(tmp_path: Path) -> None:
    """It waits for another node, and knows its signals when its store can be reached."""
    port = free_port()
    launcher = launch(
        OURS, tmp_path, options=("--nnodes", "2", "--rdzv-backend", "c10d", f"--rdzv-endpoint=localhost:{port}")
    )
    wait_until(lambda: reachable(port), launcher)
    launcher.terminate()
    assert launcher.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_our_torchrun_leaves_with_the_code_of_a_wrong_setting(tmp_path: Path) -> None:
    launcher = launch(OURS, tmp_path, *JOB, "train.micro_batch=5")
    assert launcher.wait(PATIENCE) == 2
    assert "train.micro_batch" in (tmp_path / "launcher.err").read_text()
