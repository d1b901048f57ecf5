"""bf16 computing with fp32 masters is what one writes by hand in plain PyTorch, bit for bit on two ranks."""

from __future__ import annotations

import copy

import pytest
import torch

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from tests.dist.launch import launch
from tests.dist.models import Stack
from tests.dist.training import Sample, Training, assert_equal

STEPS = 4


def sharded(stage: int) -> Training:
    torch.manual_seed(0)
    model = cd.shard(Stack(), stage=stage, mixed_precision="bf16")
    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        loss = model(Sample(rank(), step, 0).inputs(4, 8)).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Training(losses, [], cd.full_state_dict(model))


def by_hand(world: int) -> list[Training]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    masters = Stack()
    computing = copy.deepcopy(masters).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(masters.parameters(), lr=1e-2, fused=True)
    losses: list[list[float]] = [[] for _ in range(world)]
    for step in range(STEPS):
        sums = [torch.zeros_like(master) for master in masters.parameters()]
        for other in range(world):
            inputs = Sample(other, step, 0).inputs(4, 8).to(torch.bfloat16)
            loss = computing(inputs).float().square().mean()
            gradients = torch.autograd.grad(loss, list(computing.parameters()))
            sums = [total + gradient.float() for total, gradient in zip(sums, gradients, strict=True)]
            losses[other].append(loss.item())
        for master, total in zip(masters.parameters(), sums, strict=True):
            master.grad = total / world
        optimizer.step()
        computing.load_state_dict(masters.state_dict())
    state = {name: value.detach() for name, value in masters.state_dict().items()}
    return [Training(own, [], state if other == 0 else {}) for other, own in enumerate(losses)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "collectives"])
def test_two_ranks_are_bit_equal_to_the_hand_written_loop(stage: int, shared: bool) -> None:
    assert_equal(launch(sharded, stage, shared=shared), by_hand(2))


def test_one_rank_is_too() -> None:
    assert_equal(launch(sharded, 3, world=1), by_hand(1))
