"""A training that follows a plan made by the command."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from ciuic_dist.plan.__main__ import main
from ciuic_dist.planning.plan import Plan
from tests.dist.train_jobs import NO_DROPOUT, TINY, Job, losses, train

JOB = (*TINY, *NO_DROPOUT, "model.overrides.vocab_size=256", "train.global_batch=4", "train.steps=5")
MACHINE = """
nodes: 1
devices: 2
memory: 2 GiB
bf16: 20 GFLOP/s
fp32: 40 GFLOP/s
bandwidth: 10 GB/s
launch: 10 us
shared: true
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the command printed."""
    machine = tmp_path_factory.mktemp("machine") / "two.yaml"
    machine.write_text(MACHINE)
    job = [*(setting for setting in JOB if not setting.startswith("data.path")), "train.micro_batch=1"]
    with redirect_stdout(StringIO()) as out:
        assert main([*job, f"machine={machine}", "--json"]) == 0
    return out.getvalue()


@pytest.fixture
def plan(made: str, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(made)
    return path


def test_a_run_follows_a_plan_keeps_it_and_compares(plan: Path, tmp_path: Path) -> None:
    made = Plan.from_json(plan.read_text())
    assert (made.micro_batch, made.accumulation) == (1, 2)
    ended = train(tmp_path, *JOB, "run.name=planned", f"run.plan={plan}", world=2)
    assert f"at stage {made.stage}" in ended.out[0]
    assert "s a step, measured" in ended.out[0]
    assert Plan.from_json((tmp_path / "runs/planned/plan.json").read_text()) == made
    train(tmp_path, *JOB, "run.name=plain", f"engine.stage={made.stage}", "train.micro_batch=1", world=2)
    assert losses(tmp_path / "runs/planned") == losses(tmp_path / "runs/plain")


def test_a_plan_that_spills_sets_the_budget(plan: Path, tmp_path: Path) -> None:
    spilling = replace(Plan.from_json(plan.read_text()), spills=True, device=4_000_000, host=8_000_000)
    plan.write_text(spilling.to_json())
    train(tmp_path, *JOB, "run.name=planned", f"run.plan={plan}", world=2)
    lines = (tmp_path / "runs/planned/metrics.jsonl").read_text().splitlines()
    assert {"device", "host"} <= set(json.loads(lines[-1])["memory"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.global_batch=8"], "train.global_batch is 4 there and 8 here"),
        (["train.clip=null"], "train.clip is not null there and null here"),
        (["model.overrides.n_layer=3"], "this model has 3"),
        (["engine=fsdp2"], "engine=fsdp2 follows no plans"),
        (["run.plan=nowhere.json"], "run.plan=nowhere.json can't be read"),
    ],
)
def test_a_plan_for_something_else_is_refused(settings: list[str], message: str, plan: Path, tmp_path: Path) -> None:
    ended = Job(tmp_path, *JOB, f"run.plan={plan}", *settings, world=2).wait()
    assert ended.codes == [2, 2], ended
    assert message in ended.err[0]


def test_a_plan_for_more_ranks_is_refused(plan: Path, tmp_path: Path) -> None:
    ended = Job(tmp_path, *JOB, f"run.plan={plan}").wait()
    assert ended.codes == [2], ended
    assert "the number of ranks is 2 there and 1 here" in ended.err[0]


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    ended = Job(tmp_path, *JOB, f"run.plan={tmp_path / 'plan.json'}").wait()
    assert ended.codes == [2], ended
    assert "is no plan of this version" in ended.err[0]
