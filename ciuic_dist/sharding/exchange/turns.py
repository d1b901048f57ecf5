"""How ranks that share full forms agree when a unit's slices are all in place, and when nobody needs them.

Each rank keeps a board: how often it has gathered and released each unit, and where its slices are. All ranks gather
in one order, and a rank waits only for what the others do with earlier gathers, so it can't deadlock; where a rank's
order is another, the wait ends with the timeout, and never with another unit's data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

from ciuic_dist.comm.doorbell import Bell, Doorbell
from ciuic_dist.sharding.exchange import spilled
from ciuic_dist.sharding.exchange.board import GATHERED, RELEASED, Board
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.unit import Unit


class Turns:
    """One rank's view of gathers and releases on its host."""

    def __init__(self, doorbell: Doorbell, boards: Sequence[Board], rank: int) -> None:
        """``boards``: one for each rank of the host."""
        self._doorbell = doorbell
        self._boards = boards
        self._rank = rank
        self._unannounced: deque[Unit] = deque()

    def begin(self, unit: Unit) -> None:
        """A gather starts: this rank's slices are on their way."""
        self.announce()
        for shard in spilled.shards_of(unit):
            shard.others_done = partial(self._all_released, unit)
            shard.wait_for_others = partial(self._wait_for_releases, unit)
        spilled.take(unit)
        self._unannounced.append(unit)
        self.announce()

    def announce(self) -> None:
        """Tell the others which of this rank's slices have come."""
        while self._unannounced and spilled.arrived(self._unannounced[0]):
            self._announce_first()

    def finish(self, unit: Unit) -> None:
        """All slices are on the device; where, ``frames`` tells until the unit is released."""
        while unit in self._unannounced:
            self._announce_first()
        self._doorbell.wait_until_none(
            partial(self._late, GATHERED, unit),
            f"for the other ranks' part of {unit.name}",
            lambda peer: f"it has gathered it {int(self._boards[peer].counts[GATHERED, unit.index])} times",
        )

    def frames(self, flat: Flat) -> dict[int, list[int]]:
        """By rank."""
        return {rank: board.frames(flat) for rank, board in enumerate(self._boards)}

    def release(self, unit: Unit) -> None:
        """This rank needs the unit no longer."""
        self._boards[self._rank].counts[RELEASED, unit.index] += 1
        self._doorbell.ring(Bell.RELEASED)
        self.announce()

    def _announce_first(self) -> None:
        unit = self._unannounced.popleft()
        spilled.finish(unit)
        own = self._boards[self._rank]
        for flat, shard in spilled.homes_of(unit):
            own.write(flat, shard.frames)
        own.counts[GATHERED, unit.index] += 1
        self._doorbell.ring(Bell.GATHERED)

    def _all_released(self, unit: Unit) -> bool:
        return not self._late(RELEASED, unit)

    def _late(self, what: int, unit: Unit) -> list[int]:
        own = self._boards[self._rank].counts[what, unit.index]
        return [rank for rank, board in enumerate(self._boards) if board.counts[what, unit.index] < own]

    def _wait_for_releases(self, unit: Unit) -> None:
        while self._unannounced:  # the others may wait for these
            self._announce_first()
        self._doorbell.wait_until_none(
            partial(self._late, RELEASED, unit),
            f"to take {unit.name} from the device",
            lambda peer: f"it has released it {int(self._boards[peer].counts[RELEASED, unit.index])} times",
        )
