"""How a budget is divided."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ciuic_dist.memory.budget import Budgets
from ciuic_dist.memory.extent import Extent
from ciuic_dist.memory.place import StoragePlace
from ciuic_dist.planning.pages import PAGED_SHARD_MULTIPLE
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.homes import SpilledShard
from ciuic_dist.sharding.layout import lay_out
from ciuic_dist.sharding.spill import Spill


@pytest.fixture
def spill() -> Iterator[Spill]:
    made = Spill(Budgets(device=1 << 20, host=4 << 20), torch.device("cpu"))
    yield made
    made.close()


def house(spill: Spill, owner: int, *, copies_stay: bool) -> list[list[SpilledShard]]:
    """Twenty flats of a page and a quarter a rank, as they are on rank ``owner`` of three between hosts."""
    units = []
    for _ in range(20):
        parameter = nn.Parameter(torch.empty(0))
        layout = lay_out([("weight", (3 * 5 * spill.page_bytes // 16,))], 3, shard_multiple=PAGED_SHARD_MULTIPLE)
        flat = Flat(
            "flat",
            [parameter],
            layout,
            owner=owner,
            compute_dtype=torch.float32,
            device=torch.device("cpu"),
            paging=spill,
            spills=True,
        )
        spill.house(flat, copies_stay=copies_stay)
        assert isinstance(flat.home, SpilledShard)
        units.append([flat.home, *flat.home.copies])
    return units


@pytest.mark.parametrize("copies_stay", [False, True])
def test_all_ranks_have_the_same_room_and_the_same_residents(copies_stay: bool) -> None:
    found = []
    for owner in range(3):
        spill = Spill(Budgets(device=13 << 20, host=16 << 20), torch.device("cpu"))
        units = house(spill, owner, copies_stay=copies_stay)
        spill.begin(0, units)
        spill.divide(6 << 20, 0)
        rooms = [sum(shard.room for shard in unit) for unit in units]
        residents = [sum(shard.room for shard in unit if shard.resident) for unit in units]
        assert 0 < sum(map(bool, residents)) <= len(units)
        found.append((spill.homes.budget, rooms, residents))
        spill.close()
    assert found[0] == found[1] == found[2]


def shard(spill: Spill, *, stays: bool) -> SpilledShard:
    """Of a page."""
    place = StoragePlace(torch.UntypedStorage(spill.page_bytes), spill.page_bytes)
    extent = Extent("shard", spill.tiers, spill.transfers)
    return SpilledShard("shard", place, extent, spill.homes, stays=stays)


def take_together(units: list[list[SpilledShard]]) -> None:
    shards = [shard for unit in units for shard in unit]
    for shard in shards:
        shard.take()
    for shard in shards:
        shard.finish()
        shard.let_go()


@pytest.mark.parametrize("count", [5, 20])
def test_units_in_use_together_have_room_after_the_division_too(spill: Spill, count: int) -> None:
    units = [[shard(spill, stays=True), shard(spill, stays=False)] for _ in range(count)]
    spill.begin(0, units)
    for _ in range(2):
        take_together(units[:5])
        spill.divide(0, 0)
        assert all(unit[0].resident for unit in units)
        for unit in units:
            take_together([unit])
        take_together(units[-5:])
        spill.shrink()
