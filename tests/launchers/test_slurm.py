"""The shipped sbatch file: what it says, and what a real cluster makes of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dist.train_jobs import NO_DROPOUT, TINY, checkpoints, free_port, losses, steps_recorded, train
from tests.launchers.cluster import Cluster, missing

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launchers" / "slurm" / "train.sbatch"
STEPS = 400
# Saved only when it stops, so that what it goes on from is what the signal saved.
JOB = (*TINY, *NO_DROPOUT, "run.name=run", f"train.steps={STEPS}", "train.checkpoint_every=100000")
NO_CLUSTER = missing()


def run_script(folder: Path, code: int) -> tuple[int, str]:
    """The script's exit code and what it called, where srun ends with ``code``."""
    called = folder / "called"
    called.touch()
    for name, does in (
        ("srun", f"exit {code}"),
        ("scontrol", 'test "$1" = requeue || echo node7 node8 | tr " " "\\n"'),
    ):
        program = folder / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {called}\n{does}\n', encoding="utf-8")
        program.chmod(0o755)
    variables = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "5"}
    ended = subprocess.run(
        ["bash", str(SCRIPT), "+model=llama", "model.overrides={a: 1, b: 2}"],
        env={"PATH": f"{folder}:/usr/bin:/bin"} | variables,
        check=False,
    )
    return ended.returncode, called.read_text()


def test_directives_ask_for_requeueing_and_a_signal_to_every_process() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    given = {
        name: value for name, _, value in (line[10:].partition("=") for line in lines if line[:10] == "#SBATCH --")
    }
    assert given["requeue"] == ""
    assert given["open-mode"] == "append"
    assert re.fullmatch(r"USR1@\d+", given["signal"])
    assert given["ntasks-per-node"] == "1"
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any("#SBATCH" in line for line in lines[first_command:]), "Slurm reads none after a command"


def test_one_torchrun_a_node_with_arguments_that_torchrun_knows(tmp_path: Path) -> None:
    from torch.distributed.run import parse_args

    code, called = run_script(tmp_path, 0)
    assert code == 0
    line = next(line for line in called.splitlines() if line.startswith("srun"))
    found = parse_args(line.partition("-m ciuic_dist.torchrun ")[2].split())
    assert (found.nnodes, found.nproc_per_node, found.rdzv_backend) == ("2", "auto", "c10d")
    assert (found.rdzv_endpoint, found.rdzv_id, found.max_restarts) == ("node7:29500", "5.0", 0)
    assert (found.module, found.training_script) == (True, "ciuic_dist.train")
    assert " ".join(found.training_script_args) == "+model=llama model.overrides={a: 1, b: 2}"


@pytest.mark.parametrize("code", [0, 1, 2, 75, 143])
def test_exit_code_75_and_no_other_is_requeued(code: int, tmp_path: Path) -> None:
    ended, called = run_script(tmp_path, code)
    assert ended == code
    assert ("scontrol requeue 5" in called) == (code == 75)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.mark.slow
@pytest.mark.skipif(NO_CLUSTER is not None, reason=NO_CLUSTER or "")
def test_a_job_that_is_preempted_and_stopped_ends_with_the_losses_of_one_that_is_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANKS_PER_NODE": "1"}
    here |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    job = cluster.run("sbatch", "--parsable", f"--chdir={tmp_path}", str(SCRIPT), *JOB, variables=here)

    def stop_with(*command: str) -> int:
        """The step that was saved."""
        before = steps_recorded(run)
        cluster.wait_until(lambda: steps_recorded(run) > before + 3, f"steps after {before}")
        cluster.run(*command, job)
        cluster.wait_until(lambda: cluster.state(job) == "PENDING", f"{command} to requeue the job")
        assert checkpoints(run)[-1] == f"step-{steps_recorded(run):06d}"
        return steps_recorded(run)

    preempted = stop_with("scontrol", "requeue")
    stopped = stop_with("scancel", "--signal=USR1")  # what --signal does before the time limit
    assert 3 < preempted < stopped < STEPS
    cluster.wait_until(lambda: cluster.state(job) == "COMPLETED", "the job to finish")

    said = (tmp_path / f"ciuic-{job}.out").read_text()
    assert [f"resuming runs/run after step {step}" in said for step in (preempted, stopped)] == [True, True]
    assert said.count("2 ranks") == 3
    train(tmp_path, *JOB, "run.name=whole", world=2)
    assert losses(run) == losses(tmp_path / "runs" / "whole")
