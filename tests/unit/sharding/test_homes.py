"""Shards that come and go within their budget, and residents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ciuic_dist.memory.extent import Extent
from ciuic_dist.memory.frames import Frames, Window
from ciuic_dist.memory.place import FramedPlace, Place, StoragePlace
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.transfer import Transfers
from ciuic_dist.sharding.homes import Homes, HomeState, SpilledShard

FRAME = 4096
COUNT = 5


@pytest.fixture
def transfers() -> Iterator[Transfers]:
    made = Transfers(2, timeout=60.0)
    yield made
    made.close()


@pytest.fixture(params=["frames", "storage"])
def shards(transfers: Transfers, request: pytest.FixtureRequest) -> list[SpilledShard]:
    """Of a frame each, in a budget of three, all written to."""
    tier = RamTier("host", FRAME, COUNT)
    frames = Frames(FRAME, 3)
    homes = Homes(FRAME)
    homes.budget = 3 * FRAME
    homes.write_behind = True
    made = []
    for number in range(COUNT):
        place: Place
        if request.param == "frames":
            place = FramedPlace(FRAME, frames, Window([(FRAME, frames.descriptor)], FRAME), 0)
        else:
            place = StoragePlace(torch.UntypedStorage(FRAME), FRAME)
        shard = SpilledShard(str(number), place, Extent(str(number), [tier], transfers), homes)
        with shard.hold():
            shard.changing()
            place.pages()[0].fill_(number)
        made.append(shard)
    return made


def use(shard: SpilledShard) -> list[int]:
    """The distinct values it has; it is written to."""
    with shard.hold():
        shard.changing()
        found: list[int] = torch.unique(shard.place.pages()[0]).tolist()
        return found


def test_contents_come_back(shards: list[SpilledShard]) -> None:
    for _ in range(2):
        for number, shard in (*enumerate(shards), *reversed(list(enumerate(shards)))):
            assert use(shard) == [number]


def test_what_is_resident_moves_no_more(shards: list[SpilledShard], transfers: Transfers) -> None:
    shards[1].resident = True
    use(shards[1])
    page = shards[1].place.pages()[0].data_ptr()
    moved = [link.bytes for link in transfers.stats.links.values()]
    for _ in range(3):
        use(shards[1])
    assert [link.bytes for link in transfers.stats.links.values()] == moved
    for _ in range(2):
        for shard in shards:
            use(shard)
    assert shards[1].place.pages()[0].data_ptr() == page
    assert shards[1].state is HomeState.HERE
    assert use(shards[1]) == [1]


def test_a_shard_without_content_has_its_place_below_all_the_same(shards: list[SpilledShard]) -> None:
    assert shards[0].placed
    shards[0].drop()
    assert shards[0].placed
