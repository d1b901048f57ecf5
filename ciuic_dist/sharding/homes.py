"""Parameter shards that are on the device only around their use.

All share one budget of device memory. Some shards are resident, evenly spread, and are never written down. What is left
of the budget is for the others: one that was used stays until its memory is wanted. Parameters are used forth in
forward and back in backward, where evicting the least recently used is the best there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from math import ceil, floor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.extent import Extent
from ciuic_dist.memory.place import Place
from ciuic_dist.memory.tier import PageError
from ciuic_dist.memory.transfer import Ticket, wait_for_all
from ciuic_dist.monitor.units import size_text


class HomeState(Enum):
    """Where a shard is."""

    AWAY = "away"
    """In lower tiers, or nowhere yet. Memory: none on the device."""
    COMING = "coming"
    """Being read. Memory: the shard's."""
    HERE = "here"
    """On the device, perhaps being written down as well. Memory: the shard's."""


class SpilledShard:
    """One shard: its place on the device and its extent in lower tiers.

    ``copies`` are this rank's own of the other ranks' slices, where ranks share no memory.
    """

    def __init__(self, name: str, place: Place, extent: Extent, homes: Homes, *, stays: bool = True) -> None:
        """``stays``: its content is kept between uses. ``room``: bytes of the whole pages that it takes.

        ``wanted``: how many uses are under way, other ranks' included. ``resident``: once here it doesn't leave.
        """
        self.name = name
        self.place = place
        self.stays = stays
        self.copies: list[SpilledShard] = []
        self.room = homes.room_of(place.nbytes)
        self.state = HomeState.AWAY
        self.wanted = 0
        self.resident = False
        self._extent = extent
        self._homes = homes
        self._dirty = False
        self._unread = False
        self._reads: list[Ticket] = []
        self._writes: list[Ticket] = []

    @property
    def placed(self) -> bool:
        """Whether it has its place in lower tiers."""
        return self._extent.placed

    def take(self) -> None:
        """See ``Homes.take``."""
        self._homes.take(self)

    def let_go(self) -> None:
        """See ``Homes.let_go``."""
        self._homes.let_go(self)

    def drop(self) -> None:
        """See ``Homes.drop``."""
        self._homes.drop(self)

    def begin(self) -> None:
        """Start to bring the shard here; there must be room for it."""
        self.place.take()
        self.state = HomeState.COMING
        self._read()

    def arrived(self) -> bool:
        """Whether ``finish`` would return at once."""
        return all(ticket.done() for ticket in self._reads)

    def finish(self) -> None:
        """The shard is here. Raises PageError where it can't be read, which the next call tries again."""
        if self._unread:
            self._read()
        reads, self._reads = self._reads, []
        self._unread = True
        wait_for_all(reads)
        self._unread = False
        self.state = HomeState.HERE

    def show(self, others: Mapping[int, Sequence[int]] | None = None) -> None:
        """The shard, which is here and wanted, is at its address, with ``others``' frames at theirs."""
        self.place.show(others)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The shard is here and stays while the context lasts; afterwards what was written goes down."""
        self._homes.take(self)
        try:
            self.finish()
            self.show()
            yield
        finally:
            self._homes.let_go(self)

    def changing(self) -> None:
        """The shard is about to be written to."""
        self._wait_for_writes()
        self._dirty = True

    def hide(self) -> None:
        """No use is under way."""
        self.place.hide()

    def write_behind(self) -> None:
        """What was written goes down, behind the computation."""
        if self._dirty and self.state is HomeState.HERE:
            self._write()

    def forget(self) -> None:
        """The content is of no use any more."""
        self._dirty = False
        self._extent.forget()

    def leave(self) -> None:
        """Give the memory back; whether what was coming could be read doesn't matter."""
        reads, self._reads, self._unread = self._reads, [], False
        with suppress(PageError):
            wait_for_all(reads)
        if self._dirty:
            self._write()
        self._wait_for_writes()
        self.place.give_back()
        self.state = HomeState.AWAY

    def _read(self) -> None:
        self._reads = self._extent.fetch(self.place.pages()) if self._extent.stored else []
        self._unread = False

    def _write(self) -> None:
        self._wait_for_writes()
        self._writes = self._extent.store(self.place.pages())
        self._dirty = False

    def _wait_for_writes(self) -> None:
        writes, self._writes = self._writes, []
        try:
            wait_for_all(writes)
        except PageError:
            self._dirty = True  # what is here counts
            raise


def cannot_extend(nbytes: int) -> bool:
    """A budget can't be raised."""
    return False


class Homes:
    """All spilled shards of a rank, and the device memory they may have together."""

    def __init__(self, page_bytes: int) -> None:
        self.budget = 0
        self.write_behind = False
        """Whether a shard is written down as soon as it isn't used, and not first when its memory is wanted."""
        self.used = 0
        self.peak = 0
        """The most bytes that were in use at once."""
        self.extend: Callable[[int], bool] = cannot_extend
        """Raises the budget by so many bytes, if they are to be had."""
        self._page_bytes = page_bytes
        self._recent: dict[SpilledShard, None] = {}  # those here or coming, the least recently used first

    def room_of(self, nbytes: int) -> int:
        """Bytes of the whole pages that a shard takes."""
        return -(-nbytes // self._page_bytes) * self._page_bytes

    def has_room(self, shards: Sequence[SpilledShard]) -> bool:
        """Whether all could be taken."""
        missing = sum(shard.room for shard in shards if shard.state is HomeState.AWAY)
        free = [shard for shard in self._idle() if shard not in shards]
        return self.used + missing - sum(shard.room for shard in free) <= self.budget

    def take(self, shard: SpilledShard) -> None:
        """A use of ``shard`` begins: it is here, or on its way.

        Raises BudgetError where all others are in use too and there is no memory left.
        """
        shard.wanted += 1
        if shard.state is HomeState.AWAY:
            try:
                self._bring(shard)
            except BaseException:
                shard.wanted -= 1
                raise
        self._recent.pop(shard, None)
        self._recent[shard] = None

    def anticipate(self, shard: SpilledShard) -> None:
        """``shard`` will be taken: bring it, if that is possible now."""
        if shard.state is HomeState.AWAY and self.has_room([shard]):
            self._bring(shard)
            self._recent[shard] = None

    def let_go(self, shard: SpilledShard) -> None:
        """A use is over."""
        assert shard.wanted, f"{shard.name} is let go more often than taken"
        shard.wanted -= 1
        if not shard.wanted:
            shard.hide()
            if not shard.stays:
                self.drop(shard)
            elif self.write_behind and not shard.resident:
                shard.write_behind()

    def drop(self, shard: SpilledShard) -> None:
        """The content of ``shard`` is of no use any more, nor is its memory unless it is in use."""
        shard.forget()
        if shard in self._recent and not shard.wanted:
            self._send_away(shard)

    def shrink(self, budget: int) -> None:
        """Have no more than ``budget`` from now on, but for what is in use."""
        self.budget = budget
        while self.used > budget and (idle := self._idle()):
            self._send_away(idle[0])

    def _bring(self, shard: SpilledShard) -> None:
        self._make_room(shard)
        self.used += shard.room
        self.peak = max(self.peak, self.used)
        shard.begin()

    def _make_room(self, shard: SpilledShard) -> None:
        while (missing := self.used + shard.room - self.budget) > 0:
            idle = self._idle()
            if idle:
                self._send_away(idle[0])
            elif not self.extend(missing):
                raise BudgetError(
                    f"{shard.name} ({size_text(shard.room)} of parameters on this rank) has no room beside "
                    f"{', '.join(other.name for other in self._recent)} in the {size_text(self.budget, floor)} of "
                    f"memory.device that are left for parameters in use: "
                    f"give memory.device {size_text(shard.room, ceil)} more"
                )

    def _idle(self) -> list[SpilledShard]:
        """What could leave, the least recently used first."""
        return [shard for shard in self._recent if not shard.wanted and not shard.resident]

    def _send_away(self, shard: SpilledShard) -> None:
        shard.leave()
        self.used -= shard.room
        del self._recent[shard]
