"""A tensor's bytes in lower tiers: where a parameter shard lives while the device doesn't hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor

from torch import Tensor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.tier import Tier
from ciuic_dist.memory.transfer import Copy, Ticket, Transfers, fetch, store
from ciuic_dist.monitor.units import size_text

_JOBS = 4
"""Into which the copies of an extent are divided: enough to keep a drive busy, few enough to cost nothing."""


class Extent:
    """Pages of the first of ``tiers`` that have them; taken at the first store."""

    def __init__(self, name: str, tiers: Sequence[Tier], transfers: Transfers) -> None:
        self._name = name
        self._tiers = tiers
        self._transfers = transfers
        self._pages: list[tuple[Tier, int]] = []
        self.stored = False
        """Whether there is something to fetch."""

    @property
    def placed(self) -> bool:
        """Whether it has its pages, also where nothing is stored in them."""
        return bool(self._pages)

    def store(self, parts: Sequence[Tensor]) -> list[Ticket]:
        """Begin to write ``parts`` (uint8), one a page; they must stay as they are until the tickets are done.

        Raises BudgetError, with nothing taken, where there aren't pages for all.
        """
        if not self._pages:
            self._pages = take_slots(self._tiers, len(parts), self._name)
        self.stored = True
        return self._start(store, parts)

    def fetch(self, parts: Sequence[Tensor]) -> list[Ticket]:
        """Begin to read what was stored; ``parts`` are complete when the tickets are done."""
        return self._start(fetch, parts)

    def forget(self) -> None:
        """What was stored is of no use any more; its pages are for what is stored next."""
        self.stored = False

    def _start(self, way: Callable[[Tier, int, Tensor, str], Copy], parts: Sequence[Tensor]) -> list[Ticket]:
        copies = [
            way(tier, slot, part, f"{self._name} page {number}")
            for number, ((tier, slot), part) in enumerate(zip(self._pages, parts, strict=True))
        ]
        each = -(-len(copies) // _JOBS)
        return [self._transfers.start(copies[first : first + each]) for first in range(0, len(copies), each)]


def take_slot(tiers: Sequence[Tier], name: str) -> tuple[Tier, int]:
    """A slot in the first tier that has one. Raises BudgetError where none has."""
    for tier in tiers:
        if tier.pool.free_slots:
            return tier, tier.pool.alloc()
    raise no_room(tiers, name)


def take_slots(tiers: Sequence[Tier], count: int, name: str) -> list[tuple[Tier, int]]:
    """So many, of the first tiers that have them. Raises BudgetError, with none taken, where all have too few."""
    if sum(tier.pool.free_slots for tier in tiers) < count:
        raise no_room(tiers, name)
    return [take_slot(tiers, name) for _ in range(count)]


def no_room(tiers: Sequence[Tier], name: str) -> BudgetError:
    """The error for something that doesn't fit."""
    held = ", ".join(f"{tier.name} {size_text(tier.pool.slots * tier.page_bytes, floor)}" for tier in tiers)
    return BudgetError(f"no tier has room for {name}: give memory.host or memory.nvme more (now {held} for this rank)")
