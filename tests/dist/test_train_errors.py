"""What goes wrong is said in one line, by the rank that knows, and no rank hangs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ciuic_dist
from tests.dist.train_jobs import TINY, Job, steps_recorded

JOB = (*TINY, "run.name=run", "train.steps=100000")


@pytest.mark.parametrize("engine", ["paged", "fsdp2"])
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_rank_dies_the_other_names_it(engine: str, victim: int, tmp_path: Path) -> None:
    job = Job(tmp_path, *JOB, f"engine={engine}", "engine.timeout=600", world=2)
    job.wait_until(lambda: steps_recorded(tmp_path / "runs" / "run") > 2)
    job.ranks[victim].kill()
    ended = job.wait()
    survivor = 1 - victim
    assert ended.codes[survivor] == 1, ended
    assert re.search(rf"^rank {survivor}: error: rank {victim} .*ended", ended.err[survivor], re.MULTILINE), ended


def test_ranks_with_other_settings_are_told_the_difference(tmp_path: Path) -> None:
    ended = Job(tmp_path, *JOB, world=2, only={1: ("optimizer.lr=0.1",)}).wait()
    assert ended.codes == [1, 1], ended
    for error in ended.err:
        assert "settings.optimizer.lr is 0.003 on rank 0 and 0.1 on rank 1" in error
    assert not (tmp_path / "runs").exists()


def test_ranks_with_other_code_are_told_the_file(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "ciuic_dist"
    shutil.copytree(Path(ciuic_dist.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / "loop" / "schedule.py"
    changed.write_text(changed.read_text() + "# changed\n")
    ended = Job(tmp_path, *JOB, world=2, elsewhere={1: copy.parent}).wait()
    assert ended.codes == [1, 1], ended
    for error in ended.err:
        assert "source.loop/schedule.py is " in error


def test_a_global_batch_that_the_ranks_cannot_share_is_refused_with_good_values(tmp_path: Path) -> None:
    ended = Job(tmp_path, *JOB, "train.global_batch=11", world=2).wait()
    assert ended.codes == [2, 2], ended
    assert all("set train.global_batch to 10 or 12" in error for error in ended.err)
    assert not (tmp_path / "runs").exists()


def test_a_second_job_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = Job(tmp_path, *JOB)
    first.wait_until(lambda: steps_recorded(tmp_path / "runs" / "run") > 2)
    second = Job(tmp_path, *JOB, log="second").wait()
    first.kill()
    assert second.codes == [2], second
    assert "runs/run is in use by another process" in second.err[0]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("engine=fsdp2 engine.stage=1", "engine.stage=1 must be 2 or 3"),
        ("data.path=/nowhere", "/nowhere"),
        ("model.size=huge", "there is no gpt2 size huge"),
        ("model.overrides.n_layers=2", "n_layers"),
    ],
)
def test_a_wrong_setting_ends_the_job_before_it_begins(setting: str, complaint: str, tmp_path: Path) -> None:
    ended = Job(tmp_path, *JOB, *setting.split()).wait()
    assert ended.codes == [2], ended
    assert complaint in ended.err[0]
    assert "Traceback" not in ended.err[0]


def test_a_budget_that_the_first_step_exceeds_leaves_no_folder(tmp_path: Path) -> None:
    ended = Job(tmp_path, *JOB, "memory.device=800KB").wait()
    assert ended.codes == [2], ended
    assert "for activations and temporary values: raise it" in ended.err[0]
    assert not (tmp_path / "runs").exists()


def test_the_deepspeed_engine_says_how_to_install_what_it_needs(tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['deepspeed'] = None; from ciuic_dist.train import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", hidden, *JOB, "engine=deepspeed"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended
    assert "pip install --no-build-isolation deepspeed" in ended.stderr
