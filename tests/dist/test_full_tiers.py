"""Lower tiers without room for all of the state: what they lack stays on the device, and nothing else changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from ciuic_dist.memory.budget import BudgetError, parse_size
from tests.dist.launch import launch
from tests.dist.spilling import Deep, assert_spilling_changes_nothing
from tests.dist.training import OUR_ADAMW, Task

PARAMETERS = sum(parameter.numel() for parameter in Deep().parameters())


@pytest.mark.parametrize(
    ("precision", "early", "hosts"),
    [
        (None, False, (2000, 2400)),
        (None, True, (1000, 1300)),
        ("bf16", False, (1700, 2100)),
        ("bf16", True, (800, 1000)),
    ],
)
@pytest.mark.parametrize("world", [1, 2])
def test_state_has_room_in_all_tiers_together(
    precision: str | None, early: bool, hosts: tuple[int, int], world: int
) -> None:
    task = Task(Deep, steps=5, paged=partial(OUR_ADAMW, in_backward=early), options={"mixed_precision": precision})
    memory = cd.Memory(device=1_400_000 + 1_200_000 // world, host=f"{hosts[world - 1]}KB")
    assert hosts[world - 1] * 1000 < PARAMETERS * (12 if early else 16), "not all of it has room below"
    assert_spilling_changes_nothing(task, memory, world=world)


@pytest.mark.parametrize("sums", [(1, 2), (3,)])
def test_accumulation_and_nvme(sums: tuple[int, ...], tmp_path: Path) -> None:
    memory = cd.Memory(device="2400KB", host="500KB", nvme=f"{tmp_path}:1500KB")
    assert_spilling_changes_nothing(Task(Deep, sums=sums, max_norm=0.05), memory, world=1)


def test_between_hosts() -> None:
    memory = cd.Memory(device="2200KB", host="2000KB")
    assert_spilling_changes_nothing(Task(Deep, steps=4), memory, world=2, shared=False)


def refusal(memory: cd.Memory) -> str:
    model = cd.shard(Deep(), memory=memory)
    with pytest.raises(BudgetError) as caught:
        cd.AdamW(model.parameters())
    return str(caught.value)


def test_too_little_in_all_of_them_is_refused_and_what_it_names_is_enough() -> None:
    [message] = launch(refusal, cd.Memory(device="1MB", host="2000KB"), world=1)
    assert "for pages of optimizer state and gradients" in message
    needed = message.split("at least ")[1].split(" are needed")[0]
    more = message.split("memory.nvme ")[1].split(" more")[0]
    for enough in (
        cd.Memory(device=parse_size(needed, "device") + 700_000, host="2000KB"),
        cd.Memory(device="1MB", host=2_000_000 + parse_size(more, "host")),
    ):
        assert_spilling_changes_nothing(Task(Deep, steps=3), enough, world=1)


def test_activations_that_are_to_leave_have_no_room() -> None:
    memory = cd.Memory(device="2400KB", host="2000KB", activations="offload")
    [message] = launch(refusal, memory, world=1)
    assert "memory.activations=offload" in message


def test_parameters_have_to_have_room_below() -> None:
    with pytest.raises(BudgetError, match="parameters alone take"):
        cd.shard(Deep(), memory=cd.Memory(device="8MB", host=PARAMETERS * 3))


def loss_of(model: nn.Module, step: int, rows: int = 4) -> torch.Tensor:
    loss: torch.Tensor = model(torch.randn(rows, 8, generator=torch.Generator().manual_seed(step))).square().mean()
    return loss


def train_late(memory: cd.Memory | None, accumulates_from: int) -> list[float]:
    """The losses of seven steps, of two micro-batches each from one on."""
    torch.manual_seed(0)
    model = cd.shard(Deep(), memory=memory)
    optimizer = cd.AdamW(model.parameters(), in_backward=True)
    losses = []
    for step in range(7):
        if step >= accumulates_from:
            with cd.no_sync(model):
                loss_of(model, step + 100).backward()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("accumulates_from", [0, 1, 2, 3])
def test_gradients_that_are_kept_only_later_find_room(accumulates_from: int) -> None:
    memory = cd.Memory(device="3MB", host="2200KB")
    [spilled] = launch(train_late, memory, accumulates_from, world=1)
    assert [spilled] == launch(train_late, None, accumulates_from, world=1)


def train_in_parts(memory: cd.Memory | None) -> list[float]:
    """Parameters that join the optimizer in the fifth step, and a larger batch later."""
    torch.manual_seed(0)
    model = cd.shard(Deep(), memory=memory)
    parameters = list(model.parameters())
    optimizer = cd.AdamW(parameters[38:])
    losses = []
    for step in range(9):
        if step == 4:
            optimizer.add_param_group({"params": parameters[:38]})
        loss = loss_of(model, step, rows=24 if step == 6 else 4)
        loss.backward()
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    return losses


def test_state_that_comes_after_the_division_finds_room() -> None:
    [spilled] = launch(train_in_parts, cd.Memory(device="3200KB", host="2400KB"), world=1)
    assert [spilled] == launch(train_in_parts, None, world=1)
