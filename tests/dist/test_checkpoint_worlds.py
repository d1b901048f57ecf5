"""A checkpoint is the training without its world: any number of ranks, any stage and any way goes on from it."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank, world_size
from tests.dist import models
from tests.dist.launch import fresh, launch
from tests.dist.stored import everything_in
from tests.dist.training import Sample, Task, made

ROWS = 6  # of every global batch, spread over the ranks there are
Found = tuple[list[float], dict[str, Tensor]]

OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(cd.AdamW, lr=1e-2, weight_decay=0.1),
    "momentum": partial(cd.paged, torch.optim.SGD, lr=0.1, momentum=0.9),
    "nadam": partial(cd.paged, torch.optim.NAdam, lr=1e-2),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Losses of this rank's rows of the global batch."""
    losses = []
    for step in steps:
        mine = Sample(0, step, 0).inputs(ROWS, 8).chunk(world_size())[rank()]
        loss = model(mine).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def made_for(optimizer: str, options: dict[str, Any], seed: int = 0) -> nn.Module:
    """A model of mixed dtypes, unless the engine computes in one, or torch loads fp32 scalars in the parameter's."""
    alike = options.get("mixed_precision") or optimizer == "nadam"
    return made(Task(make=models.Stack if alike else models.Mixed), seed)


def start(path: Path, stage: int, optimizer: str, options: dict[str, Any]) -> Found:
    """Two steps, a checkpoint, two steps more."""
    model = cd.shard(made_for(optimizer, options), stage=stage, **options)
    stepping = OPTIMIZERS[optimizer](model.parameters())
    train(model, stepping, range(2))
    cd.save(path, model=model, optimizer=stepping, step=2)
    return train(model, stepping, range(2, 4)), cd.full_state_dict(model)


def go_on(path: Path, stage: int, optimizer: str, options: dict[str, Any], then: Path | None = None) -> Found:
    """Load, perhaps save again, two steps."""
    model = cd.shard(made_for(optimizer, options, seed=99), stage=stage, **options)
    stepping = OPTIMIZERS[optimizer](model.parameters(), lr=77.0)
    assert cd.load(path, model=model, optimizer=stepping) == {"step": 2}
    if then is not None:
        cd.save(then, model=model, optimizer=stepping, step=2)
    return train(model, stepping, range(2, 4)), cd.full_state_dict(model)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize(("stage", "shared"), [(0, True), (2, True), (3, True), (1, False), (3, False)])
def test_the_same_world_goes_on_bit_for_bit(
    stage: int, shared: bool, precision: str | None, optimizer: str, tmp_path: Path
) -> None:
    options = {"mixed_precision": precision}
    expected = launch(start, tmp_path / "c", stage, optimizer, options, shared=shared)
    found = launch(go_on, tmp_path / "c", stage, optimizer, options, shared=shared)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_other_worlds_stages_and_ways_go_on(optimizer: str, tmp_path: Path) -> None:
    """From 2 ranks on shared memory to 3 with collectives, to 1, to 2 with collectives; at another stage each time."""
    _, expected = launch(start, tmp_path / "a", 3, optimizer, {})[0]
    _, three = launch(go_on, tmp_path / "a", 1, optimizer, {}, tmp_path / "b", world=3, shared=False)[0]
    _, one = launch(go_on, tmp_path / "b", 2, optimizer, {}, tmp_path / "c", world=1)[0]
    _, two = launch(go_on, tmp_path / "c", 3, optimizer, {}, shared=False)[0]
    for state in (three, one, two):
        torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-6)


def hand_on(path: Path, then: Path, stage: int) -> None:
    """Load and save again."""
    model = cd.shard(made_for("adamw", {}, seed=99), stage=stage)
    optimizer = cd.AdamW(model.parameters())
    extra = cd.load(path, model=model, optimizer=optimizer)
    cd.save(then, model=model, optimizer=optimizer, **extra)


def test_what_goes_through_one_to_four_ranks_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    launch(start, tmp_path / "1", 3, "adamw", {}, world=1)
    for world, stage in ((2, 3), (3, 0), (4, 2)):
        launch(hand_on, tmp_path / str(world - 1), tmp_path / str(world), stage, world=world)
    first, last = everything_in(tmp_path / "1"), everything_in(tmp_path / "4")
    assert list(first["extra"]) == ["step"]
    torch.testing.assert_close(last, first, rtol=0, atol=0)


def save_a_model(path: Path) -> dict[str, Tensor]:
    model = cd.shard(made(Task(make=models.Mixed)))
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(1))
    cd.save(path, model=model, optimizer=optimizer)
    return cd.full_state_dict(model)


def test_pytorchs_own_tools_find_whole_tensors(tmp_path: Path) -> None:
    state = launch(save_a_model, tmp_path / "c", world=3)[0]
    whole = everything_in(tmp_path / "c")
    found = {name: whole[f"model.{name}"] for name in state if state[name].numel()}
    torch.testing.assert_close(found, {name: value for name, value in state.items() if value.numel()}, rtol=0, atol=0)
    for name, parameter in models.Mixed().named_parameters():
        if parameter.numel() > 1:
            assert whole[f"optimizer.state.{name}.exp_avg"].shape == parameter.shape


class Fatal:
    """What can't be written: who tries is killed."""

    def __reduce__(self) -> tuple[Any, ...]:
        os.kill(os.getpid(), signal.SIGKILL)
        return (int, ())


def save_twice(path: Path) -> None:
    model = cd.shard(made(Task()))
    cd.save(path, model=model, step="old")
    train(model, cd.AdamW(model.parameters()), range(1))
    cd.save(path, model=model, step="new", fatal=Fatal())


def load_again(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = cd.shard(made(Task(), seed=99))
    return cd.load(path, model=model), cd.full_state_dict(model)


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    outcomes = fresh(2, timeout=20.0).run(save_twice, tmp_path / "c")
    assert all(outcome.error is not None for outcome in outcomes)
    extra, state = launch(load_again, tmp_path / "c")[0]
    assert extra == {"step": "old"}
    torch.testing.assert_close(state, dict(made(Task()).state_dict()), rtol=0, atol=0)
