"""Brings pages to the device ahead of their use, and sends them away when their slot is wanted.

Some pages are resident, evenly spread among the others: once here they stay, and take nothing of lower tiers. The
others go through a ring of slots. A training step uses pages in the same order as the step before, so the order of
the last step is the schedule: the next page in it that isn't here is fetched as soon as a slot is free, or swapped
with the page of the ring whose next use is furthest, if that is later than the fetched one's (Belady's MIN with
look-ahead). An access out of order is served all the same, counted, and learned for the next step.

One thread calls the pager; only copies run in others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from ciuic_dist.memory.device import Slab
from ciuic_dist.memory.extent import take_slot
from ciuic_dist.memory.flight import Flight
from ciuic_dist.memory.pool import SlotPool
from ciuic_dist.memory.table import Page, PageState
from ciuic_dist.memory.tier import PageError, Tier
from ciuic_dist.memory.transfer import Transfers, fetch, store
from ciuic_dist.planning.residency import first_to_stay


@dataclass(slots=True)
class PagerCounts:
    """Since the start: accesses to pages that had content, those found on the device, and those not foreseen."""

    accesses: int = 0
    hits: int = 0
    faults: int = 0
    unforeseen: int = 0


class Pager:
    """Device slots of ``page_bytes`` each, and what lies in them."""

    def __init__(
        self,
        slab: Slab,
        *,
        page_bytes: int,
        most_slots: int,
        slots: int,
        tiers: Sequence[Tier],
        transfers: Transfers,
    ) -> None:
        """Uses ``slots`` slots of ``slab`` at first and up to ``most_slots``, all it has, when allowed."""
        self.page_bytes = page_bytes
        self.counts = PagerCounts()
        self.pages: list[Page] = []
        """Those that may be resident, in about the order of their use."""
        self.limit = min(slots, most_slots)
        self.resident = 0
        """How many pages stay."""
        self._pool = SlotPool(most_slots)
        self._slab = slab
        self._tiers = tiers
        self._transfers = transfers
        self._order: list[Page] = []
        self._places: dict[Page, list[int]] = {}
        self._recorded: list[Page] = []
        self._cursor = 0
        self._ahead = 0
        self._strange = 0
        self._leavable: set[Page] = set()
        self._latest: Page | None = None
        self._flights: dict[Page, Flight] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of the slots in use."""
        return self._pool.used * self.page_bytes

    @property
    def touched_bytes(self) -> int:
        """What memory the slots have: of those that were ever in use, since the last ``shrink``."""
        return self._pool.touched * self.page_bytes

    def add(self, pages: Sequence[Page]) -> None:
        """These may be resident some time."""
        self.pages += pages

    def allow(self, slots: int, ring: int) -> None:
        """Use up to ``slots`` from now on (not fewer than are in use), ``ring`` of them for pages that don't stay."""
        self.limit = max(min(slots, self._pool.slots), self._pool.used)
        self._choose_residents(slots, ring)
        self._bring_residents()
        self._pump()

    def shrink(self, slots: int, ring: int) -> None:
        """Use no more than ``slots`` from now on, and have memory for no more; nothing may be pinned.

        Raises BudgetError where there is no room below for what leaves, PageError where that can't be stored.
        """
        self.limit = min(slots, self._pool.slots)
        self._choose_residents(slots, ring)
        self._leave_at_most(self.limit)
        self._bring_residents()
        self._slab.give_back(self._pool.forget_free())
        self._ahead = self._cursor

    def pin(self, page: Page) -> Tensor:
        """The page's bytes on the device, to read and write until ``unpin``; undefined where it had no content.

        Raises PageError where its bytes can't be had, or where those in its way can't be stored, RuntimeError where
        pinned pages fill all slots.
        """
        if page.slot is None or not self._pool.is_pinned(page.slot):
            self._note(page)
            self._bring(page)
        assert page.slot is not None
        self._pool.pin(page.slot)
        self._pump()
        return self._view(page)

    def unpin(self, page: Page, *, dirty: bool) -> None:
        """The page may leave again; ``dirty``: it was written to."""
        assert page.slot is not None
        page.dirty = page.dirty or dirty
        self._pool.unpin(page.slot)
        self._latest = page
        self._pump()

    def drop(self, page: Page) -> None:
        """The page's content is of no use any more."""
        if page.state is PageState.ABSENT:
            return
        with suppress(PageError):  # whether it could be moved doesn't matter any more
            self._settle(page)
        if page.slot is not None:
            self._free_slot(page)
        self._give_back_below(page)
        page.dirty = False
        page.move(PageState.ABSENT)
        self._pump()

    def end_cycle(self) -> None:
        """A step is over: the next one will use pages in the same order, or in this one's where that was new."""
        if self._strange or not self._order:
            self._learn(self._recorded)
        self._recorded = []
        self._cursor = self._ahead = self._strange = 0
        self._pump()

    def rest(self) -> None:
        """Wait until nothing is under way. Raises PageError where something failed."""
        while self._flights:
            self._settle(next(iter(self._flights)))

    def _choose_residents(self, slots: int, ring: int) -> None:
        self.rest()
        self.resident = len(self.pages) if slots >= len(self.pages) else max(0, slots - ring)
        chosen = first_to_stay(len(self.pages), self.resident)
        for number, page in enumerate(self.pages):
            page.resident = number in chosen
            if page.state is PageState.DEVICE:
                self._arrive(page)

    def _bring_residents(self) -> None:
        """Lower tiers may be full: each that comes leaves room there for one that makes room for the next."""
        for page in self.pages:
            if page.resident and page.state is PageState.SPILLED:
                self._start(None, page, self._make_room())

    def _arrive(self, page: Page) -> None:
        """It is here, for good or to leave some time."""
        if page.resident:
            self._leavable.discard(page)
            self._give_back_below(page)
            page.dirty = True
        else:
            self._leavable.add(page)

    def _learn(self, order: list[Page]) -> None:
        self._order = order
        self._places = {}
        for place, page in enumerate(order):
            self._places.setdefault(page, []).append(place)

    def _note(self, page: Page) -> None:
        """Find the access in the schedule."""
        self._recorded.append(page)
        places = self._places.get(page, [])
        at = bisect_left(places, self._cursor)
        if at < len(places):
            self._strange += places[at] != self._cursor
            self._cursor = places[at] + 1
            self._ahead = max(self._ahead, self._cursor)
        elif self._order:
            self._strange += 1
            self.counts.unforeseen += 1

    def _bring(self, page: Page) -> None:
        if page.state is PageState.ABSENT:
            page.slot = self._make_room()
            page.move(PageState.DEVICE)
            self._arrive(page)
            return
        self.counts.accesses += 1
        self._settle_done()
        if page.state is PageState.DEVICE:
            self.counts.hits += 1
            return
        with suppress(PageError):  # what is needed now is tried once more
            self._settle(page)
        if page.state is PageState.SPILLED:
            self.counts.faults += 1
            self._start(None, page, self._make_room())
            self._settle(page)

    def _make_room(self) -> int:
        """A free slot, now."""
        self._leave_at_most(self.limit - 1)
        return self._pool.alloc()

    def _leave_at_most(self, slots: int) -> None:
        """In use; the others' pages leave."""
        while self._pool.used > slots:
            if leaving := next(self._leaving(), None):
                self._settle(leaving)
            elif victim := self._victim(after=-1):
                self._evict(victim)
                self._settle(victim)
            elif self._flights:
                self._settle(next(iter(self._flights)))
            else:
                raise RuntimeError(f"all {self.limit} device slots of {self.page_bytes} bytes are pinned")

    def _leaving(self) -> Iterator[Page]:
        """What is on its way down and leaves its slot free."""
        return (page for page, flight in self._flights.items() if flight.coming is None)

    def _pump(self) -> None:
        """Fetch ahead as far as slots allow."""
        self._settle_done()
        while self._ahead < len(self._order):
            page = self._order[self._ahead]
            if page.state is PageState.ABSENT:  # it is to be made
                self._clear_a_slot()
            if page.state in (PageState.STORING, PageState.ABSENT):
                return
            if page.state is PageState.SPILLED and not self._try_to_fetch(page):
                return
            self._ahead += 1

    def _clear_a_slot(self) -> None:
        """For what will be made: a page leaves meanwhile, if one can."""
        if self._pool.used < self.limit or any(self._leaving()):
            return
        victim = self._swappable()
        if victim is not None:
            self._evict(victim)

    def _try_to_fetch(self, page: Page) -> bool:
        if self._pool.used < self.limit:
            self._start(None, page, self._pool.alloc())
            return True
        victim = self._swappable()
        if victim is None:
            return False
        if self._is_clean(victim):
            self._evict(victim)
            self._start(None, page, self._pool.alloc())
        else:
            self._start(victim, page, victim.slot)
        return True

    def _swappable(self) -> Page | None:
        """What may leave for the next page of the schedule; not what was used last, which may be dropped soon."""
        victim = self._victim(after=self._ahead, but=self._latest)
        return None if victim is None or (victim.tier is None and not self._free_below) else victim

    def _victim(self, after: int, but: Page | None = None) -> Page | None:
        """The page that may leave, not pinned, whose next use is furthest, and later than place ``after``."""
        best, furthest = None, after
        for page in self._leavable:
            assert page.slot is not None
            following = self._next_use(page)
            if following > furthest and page is not but and not self._pool.is_pinned(page.slot):
                best, furthest = page, following
        return best

    def _next_use(self, page: Page) -> int:
        """Its place in the schedule, counted on into the next cycle; pages it doesn't know come last."""
        places = self._places.get(page)
        if not places:
            return 2 * len(self._order)
        at = bisect_left(places, self._cursor)
        return places[at] if at < len(places) else places[0] + len(self._order)

    def _evict(self, victim: Page) -> None:
        if self._is_clean(victim):
            self._free_slot(victim)
            victim.move(PageState.SPILLED)
        else:
            self._start(victim, None, None)

    def _start(self, leaving: Page | None, coming: Page | None, slot: int | None) -> None:
        """One job: store ``leaving``, then fetch ``coming`` into ``slot``, which may be the same."""
        copies = []
        if leaving is not None:
            if leaving.tier is None:
                leaving.tier, leaving.tier_slot = self._slot_below(leaving)
            assert leaving.tier_slot is not None
            copies.append(store(leaving.tier, leaving.tier_slot, self._view(leaving), leaving.name))
            leaving.move(PageState.STORING)
            self._leavable.discard(leaving)
        if coming is not None:
            assert coming.tier is not None
            assert coming.tier_slot is not None
            coming.slot = slot
            copies.append(fetch(coming.tier, coming.tier_slot, self._view(coming), coming.name))
            coming.move(PageState.FETCHING)
        flight = Flight(leaving, coming, self._transfers.start(copies))
        self._flights.update((page, flight) for page in (leaving, coming) if page is not None)

    def _slot_below(self, page: Page) -> tuple[Tier, int]:
        """What is on its way here for good gives its own back."""
        while self._flights and not self._free_below:
            self._settle(next(iter(self._flights)))
        return take_slot(self._tiers, page.name)

    @property
    def _free_below(self) -> bool:
        return any(tier.pool.free_slots for tier in self._tiers)

    def _settle_done(self) -> None:
        """What failed and isn't waited for is tried again when it is."""
        for flight in {id(flight): flight for flight in self._flights.values() if flight.ticket.done()}.values():
            with suppress(PageError):
                self._land(flight)

    def _settle(self, page: Page) -> None:
        if page in self._flights:
            self._land(self._flights[page])

    def _land(self, flight: Flight) -> None:
        """Wait for it. Raises PageError where it failed: what wasn't moved is where it was."""
        landing = flight.land()
        for page in flight.pages:
            del self._flights[page]
        if landing.free is not None:
            self._pool.free(landing.free)
        if landing.here is not None:
            self._arrive(landing.here)
        if landing.failure is not None:
            raise landing.failure

    def _is_clean(self, page: Page) -> bool:
        return page.tier is not None and not page.dirty

    def _free_slot(self, page: Page) -> None:
        assert page.slot is not None
        self._pool.free(page.slot)
        self._leavable.discard(page)
        page.slot = None

    def _give_back_below(self, page: Page) -> None:
        if page.tier is not None and page.tier_slot is not None:
            page.tier.pool.free(page.tier_slot)
            page.tier = page.tier_slot = None

    def _view(self, page: Page) -> Tensor:
        assert page.slot is not None
        return self._slab.view(page.slot, page.nbytes)
