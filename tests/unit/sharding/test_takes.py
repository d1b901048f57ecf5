"""A unit of several shards is taken as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.sharding.exchange.spilled import shards_of
from ciuic_dist.sharding.homes import cannot_extend
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.models import Stack


@pytest.fixture
def model() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    made = cd.shard(Stack(48, 200), memory=cd.Memory(device="900KB", host="16MB"))
    yield made
    sharded_of(made).close()


def test_a_unit_without_room_for_all_its_shards_holds_none(model: nn.Module) -> None:
    sharded = sharded_of(model)
    assert sharded.spill is not None
    homes, x = sharded.spill.homes, torch.ones(4, 8)
    shards = [shard for unit in sharded.units for shard in shards_of(unit)]
    with torch.no_grad():
        expected = model(x)
        budget, extend = homes.budget, homes.extend
        homes.extend = cannot_extend
        homes.shrink(shards[0].room)
        for _ in range(2):
            with pytest.raises(BudgetError, match=r"has no room .* give memory\.device \d+\.\d\d KiB more"):
                model(x)
            assert [shard.wanted for shard in shards] == [0] * len(shards)
        homes.budget, homes.extend = budget, extend
        assert torch.equal(model(x), expected)
    assert [shard.wanted for shard in shards] == [0] * len(shards)
