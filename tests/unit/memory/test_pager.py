"""The pager gives back what was written, in any order, in no more slots than it may use."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ciuic_dist.memory.device import HostSlab
from ciuic_dist.memory.pager import Pager
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.table import Page
from ciuic_dist.memory.tier import PageError
from ciuic_dist.memory.transfer import Transfers

SIZE = 4096
PAGES = 10

accesses = st.tuples(st.integers(0, PAGES - 1), st.sampled_from(["read", "write", "drop"]))
cycles = st.lists(st.lists(accesses, max_size=30), min_size=1, max_size=5)


def make(slots: int, transfers: Transfers, below: int = PAGES) -> tuple[Pager, list[Page]]:
    """``below``: slots of the lower tier."""
    tier = RamTier("host", SIZE, below)
    slab = HostSlab(PAGES, SIZE)
    pager = Pager(slab, page_bytes=SIZE, most_slots=PAGES, slots=slots, tiers=[tier], transfers=transfers)
    pages = [Page(f"page {number}", SIZE) for number in range(PAGES)]
    pager.add(pages)
    return pager, pages


def write(pager: Pager, page: Page, value: int) -> None:
    pager.pin(page).fill_(value)
    pager.unpin(page, dirty=True)


def read(pager: Pager, page: Page) -> set[int]:
    found = set(pager.pin(page).tolist())
    pager.unpin(page, dirty=False)
    return found


@settings(max_examples=60)
@given(cycles, st.integers(2, PAGES), st.integers(0, 4), st.booleans())
def test_any_accesses_in_any_order(steps: list[list[tuple[int, str]]], ring: int, stay: int, late: bool) -> None:
    """``stay``: so many pages are resident, ``late``: from the second step on, and below is room for the others."""
    transfers = Transfers(2, timeout=60.0)
    slots = ring + stay
    pager, pages = make(ring if late else slots, transfers, below=PAGES if late else max(1, PAGES - stay))
    expected: dict[int, int] = {}
    for step, accesses_of_step in enumerate(steps):
        if step == late:
            pager.allow(slots, ring)
            assert sum(page.resident for page in pages) == (PAGES if slots >= PAGES else stay)
        for place, (number, what) in enumerate(accesses_of_step):
            if what == "drop":
                pager.drop(pages[number])
                expected.pop(number, None)
            elif what == "write":
                expected[number] = (step * 31 + place) % 251
                write(pager, pages[number], expected[number])
            elif number in expected:
                assert read(pager, pages[number]) == {expected[number]}
            assert pager.used_bytes <= slots * SIZE
        pager.end_cycle()
        pager.rest()
        assert all(page.tier is None for page in pages if page.resident and page.slot is not None)
    for number, value in expected.items():
        assert read(pager, pages[number]) == {value}
    transfers.close()


def test_pages_that_stay_are_never_moved(transfers: Transfers) -> None:
    pager, pages = make(7, transfers, below=6)
    pager.allow(7, 3)
    for _ in range(3):
        for number, page in enumerate(pages):
            write(pager, page, number)
        pager.end_cycle()
        pager.rest()
    resident = [page for page in pages if page.resident]
    assert len(resident) == 4
    assert all(page.tier is None and page.slot is not None for page in resident)
    stored, fetched = (transfers.stats.links[name].count for name in ("device->host", "host->device"))
    assert stored <= 3 * 6
    assert fetched <= 2 * 6 + 3  # the ring has some of the next step's already


def test_what_stays_from_now_on_makes_room_below_at_once(transfers: Transfers) -> None:
    pager, pages = make(2, transfers, below=8)
    for number, page in enumerate(pages):
        write(pager, page, number)
    pager.allow(6, 2)
    pager.rest()
    assert all(page.tier is None for page in pages if page.resident)
    for number, page in enumerate(pages):
        assert read(pager, page) == {number}


def test_pages_that_stay_no_longer_leave_with_their_content(transfers: Transfers) -> None:
    pager, pages = make(6, transfers)
    pager.allow(6, 3)
    for number, page in enumerate(pages):
        write(pager, page, number)
    pager.shrink(2, 2)
    assert pager.used_bytes <= 2 * SIZE
    for number, page in enumerate(pages):
        assert read(pager, page) == {number}


def test_an_order_that_comes_again_is_fetched_ahead(transfers: Transfers) -> None:
    pager, pages = make(4, transfers)
    for _ in range(3):
        for number, page in enumerate(pages):
            write(pager, page, number)
            pager.rest()
        pager.end_cycle()
    assert pager.counts.accesses == 2 * PAGES
    assert pager.counts.faults <= PAGES  # those of the second cycle, when the order was not known yet
    assert pager.counts.unforeseen == 0


def test_a_new_order_is_served_counted_and_learned(transfers: Transfers) -> None:
    pager, pages = make(4, transfers)
    for order in (pages, pages, pages[::-1], pages[::-1], pages[::-1]):
        faults = pager.counts.faults
        for number, page in enumerate(order):
            write(pager, page, number)
            pager.rest()
        pager.end_cycle()
    assert pager.counts.unforeseen > 0
    assert pager.counts.faults == faults


def test_pages_in_use_stay(transfers: Transfers) -> None:
    pager, pages = make(2, transfers)
    held = [pager.pin(page).fill_(number) for number, page in enumerate(pages[:2])]
    with pytest.raises(RuntimeError, match="all 2 device slots of 4096 bytes are pinned"):
        pager.pin(pages[2])
    assert [set(content.tolist()) for content in held] == [{0}, {1}]


def test_more_slots_are_used_when_allowed(transfers: Transfers) -> None:
    pager, pages = make(2, transfers)
    for page in pages:
        write(pager, page, 7)
    assert pager.used_bytes <= 2 * SIZE
    pager.allow(5, 5)
    for page in pages:
        assert read(pager, page) == {7}
    assert pager.used_bytes == 5 * SIZE == pager.touched_bytes


def test_fewer_slots_keep_content_and_give_memory_back(transfers: Transfers) -> None:
    pager, pages = make(8, transfers)
    for number, page in enumerate(pages):
        write(pager, page, number)
    pager.end_cycle()
    pager.shrink(3, 3)
    assert pager.touched_bytes == pager.used_bytes <= 3 * SIZE
    for number, page in enumerate(pages):
        assert read(pager, page) == {number}
    assert pager.touched_bytes <= 3 * SIZE


class Failing(RamTier):
    """Some of its reads and writes fail, as drawn; a write that fails has spoilt the slot."""

    def __init__(self, fails: list[bool], slots: int) -> None:
        super().__init__("host", SIZE, slots)
        self.fails = fails

    def write(self, slot: int, content: Tensor, name: str) -> None:
        super().write(slot, torch.zeros_like(content) if self._fails() else content, name)
        self._raise(name)

    def read(self, slot: int, into: Tensor, name: str) -> None:
        super().read(slot, into, name)
        if self._fails():
            into.zero_()
        self._raise(name)

    def _fails(self) -> bool:
        self.failed = bool(self.fails) and self.fails.pop()
        return self.failed

    def _raise(self, name: str) -> None:
        if self.failed:
            raise PageError(f"{name} can't be moved")


@settings(max_examples=100)
@given(cycles, st.integers(2, PAGES - 1), st.integers(0, 4), st.lists(st.booleans(), max_size=40))
def test_what_fails_is_told_and_loses_nothing(
    steps: list[list[tuple[int, str]]], ring: int, stay: int, fails: list[bool]
) -> None:
    transfers = Transfers(1, timeout=60.0)
    tier = Failing(fails, PAGES - stay)
    slab = HostSlab(PAGES, SIZE)
    pager = Pager(slab, page_bytes=SIZE, most_slots=PAGES, slots=ring + stay, tiers=[tier], transfers=transfers)
    pages = [Page(f"page {number}", SIZE) for number in range(PAGES)]
    pager.add(pages)
    pager.allow(ring + stay, ring)
    expected: dict[int, int] = {}
    for step, accesses_of_step in enumerate(steps):
        for place, (number, what) in enumerate(accesses_of_step):
            value = (step * 31 + place) % 250 + 1
            with suppress(PageError):
                if what == "drop":
                    pager.drop(pages[number])
                    expected.pop(number, None)
                elif what == "write":
                    write(pager, pages[number], value)
                    expected[number] = value
                elif number in expected:
                    assert read(pager, pages[number]) == {expected[number]}
        with suppress(PageError):
            pager.rest()
        pager.end_cycle()
    fails.clear()
    for number, value in expected.items():
        assert read(pager, pages[number]) == {value}
    for page in pages:
        pager.drop(page)
    assert pager.used_bytes == 0
    assert tier.pool.free_slots == PAGES - stay
    transfers.close()
