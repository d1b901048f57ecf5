"""What users do around a training step, and what they are told where it can't be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.memory.budget import BudgetError
from tests.dist import models
from tests.dist.launch import launch
from tests.dist.training import Sample, Task, made, mean_square

ways = pytest.mark.parametrize("shared", [True, False], ids=["shared", "collectives"])


def backward(model: nn.Module, step: int = 0) -> None:
    mean_square(model, Sample(rank(), step, 0)).backward()


def refused(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> str:
    model = cd.shard(models.Stack())
    with pytest.raises(ValueError, match=kind.__name__) as caught:
        cd.paged(kind, (p for p in model.parameters() if p.dim() == 2), **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.Adafactor, {}), (torch.optim.Muon, {}), (torch.optim.LBFGS, {})],
    ids=["adafactor", "muon", "lbfgs"],
)
def test_an_optimizer_that_sees_whole_parameters_is_refused(
    kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    assert all("can't work on" in message for message in launch(refused, kind, options))


def step_with_torchs_own() -> str:
    model = cd.shard(models.Stack())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value)


def test_torchs_own_optimizer_on_sharded_parameters_is_refused() -> None:
    for message in launch(step_with_torchs_own):
        assert "SGD can't step" in message
        assert "cd.paged(torch.optim.SGD" in message


def train_reentrant(stage: int) -> str:
    model = cd.shard(models.Reentrant(), stage=stage)
    with pytest.raises(RuntimeError) as caught:
        backward(model)
    return str(caught.value)


@ways
def test_reentrant_checkpointing_is_refused(shared: bool) -> None:
    for message in launch(train_reentrant, 3, shared=shared):
        assert "use_reentrant=False" in message


def from_meta(stage: int) -> bool:
    with torch.device("meta"):
        model: nn.Module = models.Stack()
    torch.manual_seed(5)
    state = cd.full_state_dict(cd.shard(model, stage=stage))
    torch.manual_seed(5)
    expected = models.Stack().state_dict()
    return rank() != 0 or all(torch.equal(state[name], value) for name, value in expected.items())


@ways
def test_a_model_on_meta_gets_the_values_of_its_own_initialisation(shared: bool) -> None:
    assert launch(from_meta, 3, shared=shared) == [True, True]


def zero_by(way: str) -> bool:
    """Whether gradients that were dropped, before or after their reduction, leave no trace."""
    states = []
    for drop in (False, True):
        model = cd.shard(made(Task()))
        optimizer = cd.AdamW(model.parameters(), lr=1e-2)
        if drop:
            with cd.no_sync(model):
                backward(model, step=7)
            backward(model, step=8)
            model.zero_grad() if way == "model" else optimizer.zero_grad()
            with cd.no_sync(model):
                backward(model, step=9)
            model.zero_grad() if way == "model" else optimizer.zero_grad()
        backward(model)
        optimizer.step()
        states.append(cd.full_state_dict(model))
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@ways
@pytest.mark.parametrize("way", ["model", "optimizer"])
def test_dropped_gradients_leave_no_trace(way: str, shared: bool) -> None:
    assert launch(zero_by, way, shared=shared) == [True, True]


def round_trip() -> bool:
    """Two steps in one go, and with the optimizer's state handed to a new one in between."""
    states = []
    for renew in (False, True):
        model = cd.shard(made(Task()))
        optimizer = cd.AdamW(model.parameters(), lr=1e-2)
        for step in range(2):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            if renew:
                kept = copy.deepcopy(optimizer.state_dict())
                optimizer = cd.AdamW(model.parameters(), lr=99.0)
                optimizer.load_state_dict(kept)
        states.append(cd.full_state_dict(model))
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@ways
def test_the_optimizers_state_dict_goes_round(shared: bool) -> None:
    assert launch(round_trip, shared=shared) == [True, True]


def forget_the_last_backward() -> str:
    model = cd.shard(models.Stack(), stage=1)
    optimizer = cd.AdamW(model.parameters())
    with cd.no_sync(model):
        backward(model)
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value)


def test_a_step_after_no_sync_alone_is_refused() -> None:
    assert all("no_sync" in message for message in launch(forget_the_last_backward))


def write_to_a_parameter() -> str:
    model = cd.shard(models.Stack())
    with torch.no_grad():
        next(model.parameters()).zero_()
    with pytest.raises(RuntimeError) as caught:
        backward(model)
    return str(caught.value)


def test_a_write_to_a_parameter_is_noticed() -> None:
    assert all("first.weight was written to" in message for message in launch(write_to_a_parameter))


ARGUMENTS: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "stage": (ValueError, {"stage": 4}),
    "precision": (ValueError, {"mixed_precision": "fp4"}),
    "units": (ValueError, {"units": ["Blok"]}),
    "memory": (BudgetError, {"memory": cd.Memory(device="1GiB", activations="offload")}),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_cannot_be_are_refused(name: str) -> None:
    error, options = ARGUMENTS[name]
    with pytest.raises(error, match=name):
        cd.shard(models.Stack(), **options)


def recover_from_a_forward_that_raised() -> bool:
    model = cd.shard(made(Task()))
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(4, 9))
    backward(model)
    model.zero_grad()
    loss = mean_square(model, Sample(rank(), 0, 0))
    return torch.equal(loss, mean_square(made(Task()), Sample(rank(), 0, 0)))


@ways
def test_training_goes_on_after_a_forward_that_raised(shared: bool) -> None:
    assert launch(recover_from_a_forward_that_raised, shared=shared) == [True, True]


def call_a_part() -> bool:
    """A part of the model called by itself, outside the model's own forward."""
    model: Any = cd.shard(made(Task()))
    plain: Any = made(Task())
    x = Sample(0, 0, 0).inputs(4, 12)
    with torch.no_grad():
        return torch.equal(model.blocks[1](x), plain.blocks[1](x)) and torch.equal(model.last(x), plain.last(x))


@ways
def test_a_part_of_the_model_can_be_called(shared: bool) -> None:
    assert launch(call_a_part, shared=shared) == [True, True]
