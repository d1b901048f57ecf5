"""A training that follows a plan: its own, or one made by the command."""

from __future__ import annotations

import gc
import json
import os
import weakref
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ciuic_dist.config import Config
from ciuic_dist.engines.base import Engine
from ciuic_dist.engines.build import build as build_engine
from ciuic_dist.estimate.calls import Seen
from ciuic_dist.loop import run
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.plan.__main__ import main
from ciuic_dist.planning.plan import Plan
from ciuic_dist.train import main as train_main
from tests.dist.launch import Ranks
from tests.dist.train_jobs import NO_DROPOUT, PATIENCE, TINY, Job, losses, train

JOB = (*TINY, *NO_DROPOUT, "model.overrides.vocab_size=256", "train.global_batch=4", "train.steps=5")
OTHER = 0
"""A stage that no plan here chooses: two ranks can do with less."""
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
    assert "of a step of rank 0       predicted    measured" in ended.out[0]
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
        ([f"engine.stage={OTHER}"], f"and {OTHER} here"),
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


def plan_of(run: Path) -> Plan:
    return Plan.from_json((run / "plan.json").read_text())


def test_a_run_makes_its_own_plan_and_keeps_it_when_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own, run = [*JOB, "run.name=own", "run.plan=auto"], tmp_path / "runs/own"
    first = train(tmp_path, *own, world=2)
    plan = plan_of(run)
    assert f"at stage {plan.stage}" in first.out[0]
    assert "peak on device" in first.out[0]
    assert "(plan " in first.out[0], "live, too"
    assert (plan.machine.world, plan.training.sequences, plan.training.length) == (2, 4, 16)
    marked = replace(plan, model="kept")
    (run / "plan.json").write_text(marked.to_json())
    train(tmp_path, *own, "train.steps=7", world=2)
    assert plan_of(run) == marked
    train(tmp_path, *own, "train.steps=8", "memory.device=1GB", "memory.host=1GB", world=2)
    assert plan_of(run).model != "kept"
    assert plan_of(run).device == 10**9
    assert len(losses(run)) == 8


def test_what_the_user_has_chosen_is_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = ("engine.stage=2", "train.micro_batch=1", "train.activation_checkpointing=true", "run.name=given")
    train(tmp_path, *JOB, *given, "run.plan=auto", "train.steps=1", world=2)
    plan = plan_of(tmp_path / "runs/given")
    assert (plan.stage, plan.micro_batch, plan.recompute) == (2, 1, True)


def test_what_does_not_fit_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ended = Job(tmp_path, *JOB, "run.plan=auto", "memory.device=10KB", "memory.host=10KB", world=2).wait()
    assert ended.codes == [2, 2], ended
    assert "doesn't fit this machine: each device needs" in ended.err[0]
    assert "run.plan=null tries it all the same" in ended.err[0]
    assert not (tmp_path / "runs").exists()


def test_a_budget_that_can_not_be_gets_no_advice_that_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ended = Job(tmp_path, *JOB, "run.plan=auto", "memory.device=10KX", world=1).wait()
    assert ended.codes == [2]
    assert ended.err[0].endswith("such as 20GiB, 500MB or 1.5TB\n")


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str) -> tuple[Plan, Plan]:
    """What this process alone plans, and what it plans again when it has seen operators: far from what it takes."""
    monkeypatch.chdir(tmp_path)
    planned = Plan.from_json(made)
    here = replace(planned, machine=replace(planned.machine, devices=1), stage=0, micro_batch=4, accumulation=1)
    better = replace(here, micro_batch=2, accumulation=2)

    def again(config: Config, model: nn.Module, current: Plan, seen: Seen) -> Plan:
        assert current == here
        assert any(text.startswith("aten.addmm") for text in seen), "operators were watched"
        return better

    monkeypatch.setattr(run, "own_plan", lambda *_: here)
    monkeypatch.setattr(run, "plan_again", again)
    return here, better


def test_a_better_plan_goes_on_from_a_checkpoint(
    tmp_path: Path, plans: tuple[Plan, Plan], capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_main([*JOB, "run.plan=auto", "run.name=own", "train.steps=12"]) == 0
    said = capfd.readouterr().out
    assert "s are for another plan: going on with that from a checkpoint" in said
    assert "resuming runs/own after step 8" in said
    assert plan_of(tmp_path / "runs/own") == plans[1]
    assert train_main([*JOB, "run.name=plain", "train.steps=12"]) == 0
    assert losses(tmp_path / "runs/own") == pytest.approx(losses(tmp_path / "runs/plain"), abs=1e-5)


FIXED = ("engine.stage=1", "train.micro_batch=2", "train.steps=12")
"""What is left to choose is whether blocks recompute."""


def mislead(cache: Path) -> None:
    """Beside what is remembered of the loss nothing takes any time, so recomputing seems to be free.

    Really it is calling operators that takes time, as this describes the machine, and recomputing calls more.
    """
    [file] = (cache / "ciuic_dist").iterdir()
    content = json.loads(file.read_text())
    content["machine"]["launch"] = 0.01
    loss = [text for text in content["operators"] if text.startswith("aten._log_softmax.default")]
    content["operators"] |= dict.fromkeys(loss, 1000.0)
    assert loss
    file.write_text(json.dumps(content))


def followed(folder: Path, arguments: tuple[str, ...]) -> list[Plan]:
    """The plans that engines are built for in a training, on this rank."""
    os.chdir(folder)
    plans: list[Plan] = []

    def build(*args: Any, plan: Plan, **kwargs: Any) -> Engine:
        plans.append(plan)
        return build_engine(*args, plan=plan, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_engine", build)
        assert train_main(arguments) == 0
    return plans


def followed_by_two(folder: Path, *arguments: str) -> list[list[Plan]]:
    """The same of each of two ranks, which find in ``folder`` what is remembered of their machine."""
    ranks = Ranks(2, {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"})
    outcomes = ranks.run(followed, folder, arguments, patience=PATIENCE)
    ranks.kill()
    assert [outcome.error for outcome in outcomes] == [None, None]
    return [outcome.value for outcome in outcomes]


def test_ranks_that_were_wrong_about_their_machine_change_to_another_plan_together(tmp_path: Path) -> None:
    followed_by_two(tmp_path, *JOB, *FIXED, "run.plan=auto", "run.name=measured", "train.steps=1")
    mislead(tmp_path / "cache")
    (wrong, better), other = followed_by_two(tmp_path, *JOB, *FIXED, "run.plan=auto", "run.name=own")
    assert [plan.digest for plan in other] == [wrong.digest, better.digest]
    assert (wrong.recompute, better.recompute) == (True, False)
    assert wrong.predicted.seconds > 1000 > better.predicted.seconds
    assert plan_of(tmp_path / "runs/own") == better
    train(tmp_path, *JOB, *FIXED, "run.name=plain", world=2)
    assert losses(tmp_path / "runs/own") == losses(tmp_path / "runs/plain")


def test_a_run_that_ends_when_it_would_be_judged_just_ends(tmp_path: Path, plans: tuple[Plan, Plan]) -> None:
    assert train_main([*JOB, "run.plan=auto", "run.name=own", "train.steps=8"]) == 0
    assert plan_of(tmp_path / "runs/own") == plans[0]
    assert len(losses(tmp_path / "runs/own")) == 8


def test_a_better_plan_that_fails_gives_way_to_the_one_before(
    tmp_path: Path,
    plans: tuple[Plan, Plan],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    built = []

    def build(*args: Any, plan: Plan, **kwargs: Any) -> Engine:
        built.append(plan)
        if plan == plans[1]:
            raise BudgetError("there is less room than that")
        gc.collect()
        assert all(engine() is None for engine in engines), "nothing is left of the engine before"
        engine = build_engine(*args, plan=plan, **kwargs)
        engines.append(weakref.ref(engine.model))
        return engine

    engines: list[weakref.ref[nn.Module]] = []
    monkeypatch.setattr(run, "build_engine", build)
    assert train_main([*JOB, "run.plan=auto", "run.name=own", "train.steps=12"]) == 0
    assert built == [plans[0], plans[1], plans[0]]
    assert "going back to the plan before: there is less room than that" in capfd.readouterr().out
    assert plan_of(tmp_path / "runs/own") == plans[0]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert train_main([*JOB, "run.name=plain", "train.steps=12"]) == 0
    assert losses(tmp_path / "runs/own") == losses(tmp_path / "runs/plain"), "and watching changed nothing"


def test_checkpointing_that_a_model_is_not_able_to_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny = "model.overrides={n_embd: 32, dff: 64, n_layer: 1, n_head: 2, n_positions: 64}"
    job = ("+model=hf", "model.model_type=ctrl", tiny, "data.sequence_length=16", "train.activation_checkpointing=true")
    ended = Job(tmp_path, *job, f"data.path={__file__}").wait()
    assert ended.codes == [2], ended
    assert "cannot recompute its activations: set train.activation_checkpointing=false" in ended.err[0]
