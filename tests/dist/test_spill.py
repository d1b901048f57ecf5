"""A budget of memory changes where things are and nothing else: equal to the last bit with memory to spare."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ciuic_dist as cd
from tests.dist.launch import launch
from tests.dist.spilling import WIDE, Deep, assert_spilling_changes_nothing, below, every_tier
from tests.dist.training import OUR_ADAMW, Task, train_sharded


@every_tier
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_every_stage_tier_and_precision(
    tier: str, stage: int, world: int, precision: str | None, tmp_path: Path
) -> None:
    task = Task(WIDE, steps=4, options={"mixed_precision": precision})
    assert_spilling_changes_nothing(task, below(tier, tmp_path), stage, world)


@every_tier
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_twenty_steps(tier: str, stage: int, precision: str | None, tmp_path: Path) -> None:
    task = Task(WIDE, steps=20, decay=True, max_norm=0.05, options={"mixed_precision": precision})
    assert_spilling_changes_nothing(task, below(tier, tmp_path), stage)


@every_tier
def test_clipping(tier: str, tmp_path: Path) -> None:
    assert_spilling_changes_nothing(Task(WIDE, steps=4, max_norm=0.05), below(tier, tmp_path))


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("sums", [(2,), (1, 2), (1, 1)])
def test_accumulation(stage: int, sums: tuple[int, ...], tmp_path: Path) -> None:
    assert_spilling_changes_nothing(Task(WIDE, sums=sums), below("nvme", tmp_path), stage)


@pytest.mark.parametrize("sums", [(1,), (3,)])
@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_optimizer_in_the_backward(
    sums: tuple[int, ...], precision: str | None, world: int, tmp_path: Path
) -> None:
    task = Task(WIDE, steps=4, sums=sums, options={"mixed_precision": precision})
    free = launch(train_sharded, task, 3, world=world)
    early = replace(task, paged=partial(OUR_ADAMW, in_backward=True))
    assert [t.losses for t in launch(train_sharded, early, 3, world=world)] == [t.losses for t in free]
    spilled = assert_spilling_changes_nothing(early, below("nvme", tmp_path), world=world)
    assert [s.training.losses for s in spilled] == [t.losses for t in free]


@pytest.mark.parametrize("early", [False, True])
def test_many_blocks(early: bool, tmp_path: Path) -> None:
    task = Task(Deep, steps=5, paged=partial(OUR_ADAMW, in_backward=early))
    assert_spilling_changes_nothing(task, below("nvme", tmp_path))


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
    "NAdam": (torch.optim.NAdam, {"lr": 1e-3}),
    "AMSGrad": (torch.optim.AdamW, {"lr": 1e-3, "amsgrad": True}),
    "Adam": (torch.optim.Adam, {"lr": 1e-3}),
    "Adamax": (torch.optim.Adamax, {"lr": 1e-3}),
    "RAdam": (torch.optim.RAdam, {"lr": 1e-3}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "ASGD": (torch.optim.ASGD, {"lr": 1e-2}),
    "Rprop": (torch.optim.Rprop, {"lr": 1e-3}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_elementwise_optimizer(name: str, tmp_path: Path) -> None:
    cls, options = OPTIMIZERS[name]
    task = Task(WIDE, paged=partial(cd.paged, cls, **options), steps=4)
    assert_spilling_changes_nothing(task, below("nvme", tmp_path))


def test_three_ranks(tmp_path: Path) -> None:
    assert_spilling_changes_nothing(Task(WIDE, steps=4), below("nvme", tmp_path), world=3)
