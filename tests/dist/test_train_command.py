"""The commands a user types, from a folder of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ciuic_dist
from tests.dist.train_jobs import PATIENCE, TINY, losses

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SHORT = (*TINY, "train.steps=2", "run.name=run")


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["python", "torchrun"])
def test_a_job_runs_from_any_folder_and_leaves_one_behind(launcher: tuple[str, ...], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "ciuic_dist.train", *SHORT],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(ciuic_dist.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("step 1/2 ")
    assert ended.stdout.endswith("finished: runs/run\n")
    assert len(losses(tmp_path / "runs" / "run")) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
