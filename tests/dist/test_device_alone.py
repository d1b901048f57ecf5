"""A budget of the device with nothing below it is a promise too: what fits trains as ever, the rest is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from ciuic_dist.memory.budget import BudgetError, parse_size
from ciuic_dist.planning.machine import Machine
from tests.dist.launch import launch
from tests.dist.models import Stack
from tests.dist.spilling import WIDE, Spilled, train_spilled
from tests.dist.test_activations import BLOCKS, ROWS, Deep, Dropping, step, trained
from tests.dist.test_activations import TASK as SAVING
from tests.dist.training import OUR_ADAMW, Task, train_sharded


def assert_as_ever(task: Task, memory: cd.Memory, stage: int = 3, world: int = 2, shared: bool = True) -> None:
    free = launch(train_sharded, task, stage, world=world, shared=shared)
    task = replace(task, options={**task.options, "memory": memory})
    found: list[Spilled] = launch(train_spilled, task, stage, world=world, shared=shared)
    for ours, theirs in zip(found, free, strict=True):
        assert (ours.training.losses, ours.training.norms) == (theirs.losses, theirs.norms)
        assert ours.training.state.keys() == theirs.state.keys()
        for name, value in theirs.state.items():
            assert torch.equal(ours.training.state[name], value), name
        assert not ours.spilling.links
        assert memory.device is not None
        assert ours.peak <= parse_size(memory.device, "device")


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_every_stage_and_precision(stage: int, world: int, precision: str | None) -> None:
    task = Task(WIDE, steps=4, max_norm=0.05, options={"mixed_precision": precision})
    assert_as_ever(task, cd.Memory(device="1300KB"), stage, world)


@pytest.mark.parametrize("stage", [1, 3])
def test_between_hosts(stage: int) -> None:
    assert_as_ever(Task(WIDE, steps=4), cd.Memory(device="2MB"), stage, shared=False)


@pytest.mark.parametrize("sums", [(1,), (3,), (1, 2)])
@pytest.mark.parametrize("early", [False, True])
def test_accumulation_and_the_optimizer_in_the_backward(sums: tuple[int, ...], early: bool) -> None:
    optimizer = partial(OUR_ADAMW, in_backward=early and len(sums) == 1)
    assert_as_ever(Task(WIDE, sums=sums, paged=optimizer), cd.Memory(device="1300KB"))


def test_gradients_that_are_used_up_need_no_room() -> None:
    task = Task(WIDE, steps=4, paged=partial(OUR_ADAMW, in_backward=True))
    memory = cd.Memory(device="1MB")
    assert_as_ever(task, memory, world=1)
    with pytest.raises(Exception, match="at least"):
        launch(train_sharded, replace(task, paged=OUR_ADAMW, options={"memory": memory}), 3, world=1)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("way", ["auto", "recompute"])
def test_activations_that_do_not_fit_are_made_again(world: int, way: str) -> None:
    """With dropout, so the same random numbers have to be drawn."""
    assert_as_ever(SAVING, cd.Memory(device="6MB", activations=way), world=world)


def ways(memory: cd.Memory) -> dict[str, int]:
    model, _ = trained(memory, steps=2, make=partial(Deep, Dropping))
    return cd.status(model).activations


@pytest.mark.parametrize(("device", "recomputed"), [("20MB", 0), ("6MB", BLOCKS - 1)])
def test_no_more_is_made_again_than_must_be(device: str, recomputed: int) -> None:
    [found] = launch(ways, cd.Memory(device=device), world=1)
    assert found == {"keep": BLOCKS + 1 - recomputed, "offload": 0, "recompute": recomputed}


def refusal(memory: cd.Memory, make: Callable[[], nn.Module] = Deep) -> tuple[str, str]:
    """What there was before it was refused, and why; no parameter has changed."""
    torch.manual_seed(0)
    model, there = make(), "nothing"
    values = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        cd.shard(model, memory=memory)
        there = "the model"
        optimizer = cd.AdamW(model.parameters())
        there = "the optimizer"
        step(model, optimizer)
    except BudgetError as error:
        found = model.state_dict() if there == "nothing" else cd.full_state_dict(model)
        assert all(torch.equal(*pair) for pair in zip(found.values(), values, strict=True))
        return there, str(error)
    return "", ""


@pytest.mark.parametrize(("device", "before"), [("300KB", "nothing"), ("1MB", "the model"), ("3MB", "the optimizer")])
def test_what_does_not_fit_is_refused_as_soon_as_it_is_known(device: str, before: str) -> None:
    """Six blocks take 0.5 MB, 1.5 MB with gradients and moments, and their activations 1.3 MB at the least."""
    [(there, message)] = launch(refusal, cd.Memory(device=device), world=1)
    assert there == before
    named = re.search(r"at least (\d+\.\d\d [KM]iB) are needed", message)
    assert named is not None
    assert "give memory.host or memory.nvme" in message
    if before != "the optimizer":  # of activations no more is known than those there were
        [(later, _)] = launch(refusal, cd.Memory(device=named[1]), world=1)
        assert later != before, "so much is enough for what was refused"


def test_state_counts_as_far_as_the_optimizer_has_any() -> None:
    memory = cd.Memory(device="800KB")
    assert_as_ever(Task(WIDE, paged=partial(cd.paged, torch.optim.SGD, lr=0.1)), memory, world=1)
    [(there, _)] = launch(refusal, memory, WIDE, world=1)
    assert there == "the model"


HERE = Machine("one host", 1, 1, 1 << 30, 1e12, 1e12, 1e10, 1e-6, shared=True)


def planned(device: int) -> bool:
    """Whether a plan has room for the blocks with their activations in so much, and nothing below."""
    try:
        plan = cd.plan(Deep, HERE, torch.empty(1, 8), sequences=ROWS, memory=cd.Memory(device=device), stage=3)
    except BudgetError:
        return False
    assert plan.predicted.peak.keys() == {"device"}
    return True


def test_plans_agree() -> None:
    for device, fits in ((1_500_000, False), (12_000_000, True)):
        assert planned(device) == fits
        [(there, _)] = launch(refusal, cd.Memory(device=device), world=1)
        assert (there == "") == fits


def test_there_is_nowhere_to_offload_to() -> None:
    with pytest.raises(BudgetError, match="needs a tier below"):
        cd.shard(Stack(), memory=cd.Memory(device="1GiB", activations="offload"))
