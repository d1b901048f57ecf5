"""Ranks of a host keep the same budget for parameters, whatever part of the model each has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import launch
from tests.dist.models import Block
from tests.dist.spilling import Deep


class Scaled(Block):
    """Has a parameter so small that rank 0 has all of it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(width, inner)
        self.scale = nn.Parameter(torch.ones(width, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale.float()


def budget_and_residents(device: str) -> tuple[int, list[bool]]:
    torch.manual_seed(0)
    model = Deep(12)
    model.blocks = nn.ModuleList(Scaled(48, 200) for _ in model.blocks)
    cd.shard(model, memory=cd.Memory(device=device, host="16MB"))
    optimizer = cd.AdamW(model.parameters())
    for _ in range(3):
        model(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    spill = sharded_of(model).spill
    assert spill is not None
    return spill.homes.budget, [shard.resident for shard in spill._shards]


def test_where_a_rank_has_no_part_of_a_small_flat() -> None:
    first, second = launch(budget_and_residents, "1MB")
    assert any(first[1])
    assert not all(first[1])
    assert first == second
