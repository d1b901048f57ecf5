"""How a budget is divided."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ciuic_dist.memory.budget import Budgets
from ciuic_dist.memory.extent import Extent
from ciuic_dist.memory.frames import Window
from ciuic_dist.sharding.homes import SpilledShard
from ciuic_dist.sharding.spill import Spill


@pytest.fixture
def spill() -> Iterator[Spill]:
    made = Spill(Budgets(device=1 << 20, host=4 << 20))
    yield made
    made.close()


def shard(spill: Spill, *, stays: bool) -> SpilledShard:
    """Of a page."""
    window = Window([(spill.page_bytes, spill.homes.frames.descriptor)], spill.page_bytes)
    extent = Extent("shard", spill.tiers, spill.transfers)
    return SpilledShard("shard", spill.page_bytes, window, 0, extent, spill.homes, stays=stays)


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
        spill.divide(0, 0, 0.0)
        assert all(unit[0].resident for unit in units)
        for unit in units:
            take_together([unit])
        take_together(units[-5:])
        spill.shrink()
