"""The same command again goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.dist.train_jobs import NO_DROPOUT, TINY, Job, checkpoints, losses, steps_recorded, train

STEPS = 24
JOB = (*TINY, f"train.steps={STEPS}", "train.checkpoint_every=8", "train.validate_every=12")


def forget(run: Path, step: int) -> None:
    """As if the run had not come to this checkpoint."""
    shutil.rmtree(run / "checkpoints" / f"step-{step:06d}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of JOB on two ranks that nothing disturbs, dropout and all."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder, *JOB, world=2)
    return folder / "runs" / "gpt2-tiny"


def test_a_run_leaves_its_files_and_nothing_else(uninterrupted: Path) -> None:
    assert sorted(entry.name for entry in uninterrupted.parents[1].iterdir() if entry.is_dir()) == ["runs"]
    assert sorted(entry.name for entry in uninterrupted.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "loss.png",
        "metrics.jsonl",
    ]
    assert checkpoints(uninterrupted) == ["step-000016", "step-000024"]
    records = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "validation_loss" in record] == [12, 24]
    assert records[-1]["validation_loss"] < records[0]["loss"]


def test_after_kill_9_of_everything_the_losses_are_the_same_bit_for_bit(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "gpt2-tiny"
    job = Job(tmp_path, *JOB, world=2)
    job.wait_until(lambda: steps_recorded(run) > 9)
    job.kill()
    assert 9 < steps_recorded(run) < STEPS
    (run / "checkpoints" / "step-000999.partial").mkdir()
    ended = train(tmp_path, *JOB, world=2)
    assert "resuming runs/gpt2-tiny after step " in ended.out[0]
    assert losses(run) == losses(uninterrupted)
    assert checkpoints(run) == checkpoints(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    number: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "gpt2-tiny"
    job = Job(tmp_path, *JOB, world=2)
    job.wait_until(lambda: steps_recorded(run) > 3)
    os.kill(job.ranks[1].pid or 0, number)
    ended = job.wait()
    assert ended.codes == [75, 75], ended
    done = steps_recorded(run)
    assert f"stopped by a signal after step {done} of {STEPS}" in ended.out[0]
    assert checkpoints(run)[-1] == f"step-{done:06d}"
    train(tmp_path, *JOB, world=2)
    assert losses(run) == losses(uninterrupted)


@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed"])
def test_the_other_engines_resume_bit_for_bit_too(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine if engine == "deepspeed" else "torch")
    job = (*TINY, f"engine={engine}", "run.name=run", "train.steps=6", "train.checkpoint_every=3")
    run = tmp_path / "runs" / "run"
    train(tmp_path, *job, world=2)
    whole = losses(run)
    forget(run, 6)
    train(tmp_path, *job, world=2)
    assert losses(run) == whole


@pytest.mark.parametrize("engine", ["paged", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_ranks(engine: str, tmp_path: Path) -> None:
    job = (*TINY, *NO_DROPOUT, f"engine={engine}", "run.name=run", "train.steps=6", "train.checkpoint_every=3")
    run = tmp_path / "runs" / "run"
    train(tmp_path, *job, world=2)
    whole = losses(run)
    forget(run, 6)
    train(tmp_path, *job)
    assert losses(run) == pytest.approx(whole, abs=1e-5)
    forget(run, 6)
    train(tmp_path, *job, world=3)
    assert losses(run) == pytest.approx(whole, abs=1e-5)


def test_the_learning_rate_and_the_steps_may_change_on_resume_and_are_named(tmp_path: Path) -> None:
    begun = train(tmp_path, *TINY, "run.name=run", "train.steps=2")
    resumed = train(tmp_path, *TINY, "run.name=run", "train.steps=3", "optimizer.lr=0.5")
    line = "settings that are not what they were in runs/run: optimizer.lr (0.003 there, 0.5 now), train.steps (2 there"
    assert line not in begun.out[0]
    assert line in resumed.out[0]
    lines = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in lines] == pytest.approx([1.5e-3, 3e-3, 0.5])


def test_a_finished_run_says_so_and_names_what_changed(uninterrupted: Path) -> None:
    files = [uninterrupted / "metrics.jsonl", uninterrupted / "config.yaml"]
    before = [file.read_bytes() for file in files]
    finished = f"runs/gpt2-tiny is finished: {STEPS} steps"
    assert train(uninterrupted.parents[1], *JOB).out[0].startswith(finished)
    changed, said = train(uninterrupted.parents[1], *JOB, "optimizer.lr=1").out[0].splitlines()
    assert changed.endswith(" in runs/gpt2-tiny: optimizer.lr (0.003 there, 1.0 now)")
    assert said.startswith(finished)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("train.seed=1", "train.seed (0 there, 1 now)"),
        ("train.global_batch=24", "train.global_batch (12 there, 24 now)"),
        ("data.sequence_length=8", "data.sequence_length (16 there, 8 now)"),
        ("model.overrides.n_layer=1", "model.overrides.n_layer (2 there, 1 now)"),
        ("engine=deepspeed", "engine.name (paged there, deepspeed now)"),
    ],
)
def test_a_run_is_not_continued_with_other_settings(change: str, complaint: str, uninterrupted: Path) -> None:
    before = (uninterrupted / "config.yaml").read_bytes()
    ended = Job(uninterrupted.parents[1], *JOB, "run.name=gpt2-tiny", change).wait()
    assert ended.codes == [2], ended
    assert complaint in ended.err[0]
    assert "give another run.name" in ended.err[0]
    assert (uninterrupted / "config.yaml").read_bytes() == before
