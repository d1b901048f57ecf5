"""The same command again goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from random import Random

import pytest

from tests import damage
from tests.dist.stored import everything_in
from tests.dist.train_jobs import NO_DROPOUT, TINY, Job, checkpoints, losses, steps_recorded, train

STEPS = 24
JOB = (*TINY, f"train.steps={STEPS}", "train.checkpoint_every=8", "train.validate_every=12")
LONGER = (*JOB, "train.steps=25", "train.checkpoint_every=25")


def forget(run: Path, step: int) -> None:
    """As if the run had not come to this checkpoint."""
    shutil.rmtree(run / "checkpoints" / f"step-{step:06d}")


def need(engine: str) -> None:
    """Skip what needs a package that isn't there."""
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")


def engine_id(engine: str) -> str:
    """Of arguments that begin with an engine's name, without spaces."""
    return engine.replace(" engine.stage=", "-")


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
    job.wait_until(lambda: steps_recorded(run) > 9 and (run / "checkpoints" / "step-000008").is_dir())
    job.kill()
    assert 9 < steps_recorded(run) < STEPS
    (run / "checkpoints" / "step-000999.partial").mkdir()
    ended = train(tmp_path, *JOB, world=2)
    assert "resuming runs/gpt2-tiny after step " in ended.out[0]
    assert losses(run) == losses(uninterrupted)
    assert checkpoints(run) == checkpoints(uninterrupted)


@pytest.fixture(scope="module")
def from_sixteen(uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The longer run, from the last but one checkpoint of that run."""
    folder = tmp_path_factory.mktemp("longer")
    run = folder / "runs" / "gpt2-tiny"
    shutil.copytree(uninterrupted, run)
    forget(run, 24)
    train(folder, *LONGER, world=2)
    return run


def test_no_world_repeats_or_skips_a_sample(uninterrupted: Path, tmp_path: Path) -> None:
    job = (*JOB, *NO_DROPOUT)
    for world, last in ((3, 8), (1, 16), (2, STEPS)):
        train(tmp_path, *job, f"train.steps={last}", "train.warmup_steps=2", world=world)
    records = [json.loads(line) for line in (tmp_path / "runs/gpt2-tiny/metrics.jsonl").read_text().splitlines()]
    assert [record["samples"] for record in records] == [[12 * step, 12 * (step + 1)] for step in range(STEPS)]
    extra = everything_in(tmp_path / "runs/gpt2-tiny/checkpoints" / f"step-{STEPS:06d}")["extra"]
    assert (extra["step"], extra["samples"], extra["seed"]) == (STEPS, 12 * STEPS, 0)
    assert extra["config"]["train"]["global_batch"] == 12


def flip(file: Path) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("seed", [0, 1])  # a bit flipped, cut off
@pytest.mark.parametrize("damaged", ["manifest.json", "rank-00001.index", "rank-00001.pages"])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_goes_on(
    damaged: str, seed: int, uninterrupted: Path, from_sixteen: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "gpt2-tiny"
    shutil.copytree(uninterrupted, run)
    file = run / "checkpoints" / "step-000024" / damaged
    file.write_bytes(damage.damaged(file.read_bytes(), Random(seed)))
    said = train(tmp_path, *LONGER, world=2).out[0]
    assert f"that checkpoint is corrupt: runs/gpt2-tiny/checkpoints/step-000024/{damaged}: " in said
    assert "resuming runs/gpt2-tiny after step 16" in said
    assert "the corrupt checkpoint of step 24 is now runs/gpt2-tiny/checkpoints/step-000024.corrupt" in said
    assert losses(run) == losses(from_sixteen)
    assert checkpoints(run) == ["step-000016", "step-000024.corrupt", "step-000025"]


def test_damage_beside_the_checkpoints_changes_no_loss(uninterrupted: Path, from_sixteen: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "gpt2-tiny"
    shutil.copytree(uninterrupted, run)
    forget(run, 24)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"loss"', b'"lost"')
    (run / "metrics.jsonl").write_bytes(b"".join(lines)[:-300])
    (run / "config.yaml.partial").write_text("half")
    train(tmp_path, *LONGER, world=2)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [step for step in range(1, 26) if step != 4]
    assert [record["loss"] for record in records[15:]] == losses(from_sixteen)[16:]


def test_where_no_checkpoint_verifies_nothing_is_begun_anew(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "gpt2-tiny"
    shutil.copytree(uninterrupted, run)
    for step in (16, 24):
        flip(run / "checkpoints" / f"step-{step:06d}" / "rank-00000.pages")
    for _ in range(2):
        ended = Job(tmp_path, *LONGER, world=2).wait()
        assert ended.codes == [1, 1], ended
        assert "no checkpoint of runs/gpt2-tiny verifies" in ended.err[0]
        assert checkpoints(run) == checkpoints(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
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


@pytest.mark.parametrize(
    "engine",
    [
        "fsdp2",
        *(
            pytest.param(
                f"deepspeed engine.stage={stage} train.precision={precision}", id=f"deepspeed-{stage}-{precision}"
            )
            for stage in range(4)
            for precision in ("fp32", "bf16")
        ),
    ],
)
def test_the_other_engines_resume_bit_for_bit_too(engine: str, tmp_path: Path) -> None:
    need(engine)
    job = (*TINY, *f"engine={engine}".split(), "run.name=run", "train.steps=6", "train.checkpoint_every=3")
    run = tmp_path / "runs" / "run"
    train(tmp_path, *job, world=2)
    whole = losses(run)
    forget(run, 6)
    train(tmp_path, *job, world=2)
    assert losses(run) == whole


@pytest.mark.parametrize(
    "engine", ["paged", "fsdp2", *(f"deepspeed engine.stage={stage}" for stage in range(4))], ids=engine_id
)
def test_a_run_goes_on_with_another_number_of_ranks(engine: str, tmp_path: Path) -> None:
    need(engine)
    job = (*TINY, *NO_DROPOUT, *f"engine={engine}".split(), "run.name=run", "train.steps=6", "train.checkpoint_every=3")
    run = tmp_path / "runs" / "run"
    train(tmp_path, *job, world=2)
    whole = losses(run)
    forget(run, 6)
    train(tmp_path, *job)
    assert losses(run) == pytest.approx(whole, abs=1e-5)
    forget(run, 6)
    train(tmp_path, *job, world=3)
    assert losses(run) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("paged", "fsdp2"),
        ("fsdp2", "paged"),
        ("fsdp2", "deepspeed"),
        ("deepspeed", "fsdp2"),
        *(("paged", f"deepspeed engine.stage={stage}") for stage in range(4)),
        *((f"deepspeed engine.stage={stage}", "paged") for stage in range(4)),
        ("deepspeed engine.stage=3", "deepspeed engine.stage=1"),
    ],
    ids=engine_id,
)
def test_a_run_goes_on_with_another_engine(first: str, then: str, tmp_path: Path) -> None:
    need(first)
    need(then)
    job = (*TINY, *NO_DROPOUT, "run.name=run", "train.steps=6", "train.checkpoint_every=3")
    run = tmp_path / "runs" / "run"
    train(tmp_path, *job, *f"engine={first}".split(), world=2)
    whole = losses(run)
    forget(run, 6)
    resumed = train(tmp_path, *job, *f"engine={then}".split(), world=3)
    assert "settings that are not what they were" in resumed.out[0]
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
    ],
)
def test_a_run_is_not_continued_with_other_settings(change: str, complaint: str, uninterrupted: Path) -> None:
    before = (uninterrupted / "config.yaml").read_bytes()
    ended = Job(uninterrupted.parents[1], *JOB, "run.name=gpt2-tiny", change).wait()
    assert ended.codes == [2], ended
    assert complaint in ended.err[0]
    assert "give another run.name" in ended.err[0]
    assert (uninterrupted / "config.yaml").read_bytes() == before
