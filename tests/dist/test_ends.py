"""A process that has done its work ends with exit code 0 and in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ciuic_dist.checkpoint.saved import Saved

TIMES = 5  # an end that aborts one process in five goes unnoticed once in ten runs of a test


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "collectives"])
@pytest.mark.parametrize("how", ["destroy", "return"])
def test_ranks_end_well_whether_or_not_they_destroy_their_group(how: str, shared: bool, tmp_path: Path) -> None:
    ended = end(how, tmp_path, shared=shared)
    assert (ended.stdout, ended.stderr) == ("0 0\n" * TIMES, ""), ended


@pytest.mark.slow
def test_a_checkpoint_in_the_making_is_waited_for(tmp_path: Path) -> None:
    ended = end("save", tmp_path)
    assert (ended.stdout, ended.stderr) == ("0 0\n" * TIMES, ""), ended
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    Saved(tmp_path / "checkpoint")


@pytest.mark.slow
def test_a_rank_that_fails_meanwhile_ends_by_its_exception(tmp_path: Path) -> None:
    ended = end("fail", tmp_path)
    assert ended.stdout == "1 1\n" * TIMES, ended
    assert ended.stderr.count("RuntimeError: on purpose") == 2 * TIMES
    assert "terminate called" not in ended.stderr


def end(how: str, folder: Path, *, shared: bool = True) -> subprocess.CompletedProcess[str]:
    """``ends.py`` in ``folder``, over the pool or not."""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ends.py")), how, str(TIMES)],
        env=os.environ | {"PYTHONPATH": str(root), "CIUIC_SHM_DISABLE": "0" if shared else "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert how == "fail" or ended.returncode == 0
    return ended
