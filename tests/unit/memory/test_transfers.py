"""Transfers beside the computation: what a ticket tells, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Barrier, Event, Thread
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ciuic_dist.memory import transfer
from ciuic_dist.memory.file import FileTier
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.tier import PageError, Tier
from ciuic_dist.memory.transfer import Transfers, fetch, store
from ciuic_dist.monitor.spilling import LinkStats

PAGE = 1 << 16


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.asked = Event()

    def __call__(self) -> float:
        now = self.now
        self.asked.set()
        return now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=clock))
    return clock


class WatchedTier(RamTier):
    """Calls ``before`` in the thread that writes."""

    def __init__(self, before: Callable[[], object], slots: int = 4) -> None:
        super().__init__("host", PAGE, slots)
        self._before = before
        for _ in range(slots):
            self.pool.alloc()

    def write(self, slot: int, source: Tensor, name: str) -> None:
        self._before()
        super().write(slot, source, name)


@pytest.fixture(params=["host", "nvme"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tier]:
    tier: Tier = RamTier("host", PAGE, 16) if request.param == "host" else FileTier(tmp_path, PAGE, 16)
    with closing(tier):
        yield tier


def page(value: int = 1) -> Tensor:
    return torch.full((PAGE,), value, dtype=torch.uint8)


def test_pages_go_down_and_come_back(tier: Tier) -> None:
    pages = {tier.pool.alloc(): page(value) for value in range(16)}
    into = {slot: torch.empty(PAGE, dtype=torch.uint8) for slot in pages}
    with closing(Transfers(threads=4, timeout=60.0)) as transfers:
        for ticket in [transfers.store(tier, slot, source, f"page {slot}") for slot, source in pages.items()]:
            ticket.wait()
            assert ticket.done()
        for ticket in [transfers.fetch(tier, slot, into[slot], f"page {slot}") for slot in pages]:
            ticket.wait()
        links = transfers.stats.links
    assert all(torch.equal(into[slot], pages[slot]) for slot in pages)
    assert {name: (link.bytes, link.count) for name, link in links.items()} == {
        f"device->{tier.name}": (16 * PAGE, 16),
        f"{tier.name}->device": (16 * PAGE, 16),
    }


def test_a_page_that_leaves_and_one_that_comes_share_memory() -> None:
    tier = WatchedTier(lambda: None)
    tier.write(0, page(1), "p")
    memory = page(2)
    with closing(Transfers(threads=4, timeout=60.0)) as transfers:
        transfers.start([store(tier, 1, memory, "q"), fetch(tier, 0, memory, "p")]).wait()
    assert torch.equal(memory, page(1))
    tier.read(1, memory, "q")
    assert torch.equal(memory, page(2))


def test_a_failure_is_told_at_every_wait_and_stops_what_was_to_follow(tier: Tier) -> None:
    slot, other = tier.pool.alloc(), tier.pool.alloc()
    with closing(Transfers(threads=1, timeout=60.0)) as transfers:
        ticket = transfers.start([fetch(tier, slot, page(), "page 7"), store(tier, other, page(), "page 8")])
        for _ in range(2):
            with pytest.raises(PageError, match="page 7 can't be read"):
                ticket.wait()
        transfers.store(tier, slot, page(), "page 7").wait()  # the thread lives on
        links = transfers.stats.links
    assert (links[f"{tier.name}->device"].bytes, links[f"{tier.name}->device"].count) == (0, 0)
    assert links[f"device->{tier.name}"].count == 1


def test_a_wait_ends_after_the_timeout_and_names_the_page() -> None:
    go = Event()
    with closing(Transfers(threads=1, timeout=0.01)) as transfers:
        try:
            ticket = transfers.store(WatchedTier(go.wait), 0, page(), "layers.3 exp_avg page 2")
            with pytest.raises(TimeoutError, match=r"0\.01 s for layers\.3 exp_avg page 2 \(device->host\)"):
                ticket.wait()
            assert not ticket.done()
        finally:
            go.set()


def test_closing_waits_for_what_is_under_way() -> None:
    go = Event()
    tier = WatchedTier(go.wait)
    transfers = Transfers(threads=1, timeout=60.0)
    tickets = [transfers.store(tier, slot, page(slot), "p") for slot in range(4)]
    Thread(target=go.set).start()
    transfers.close()
    assert all(ticket.done() for ticket in tickets)
    with pytest.raises(RuntimeError, match="shutdown"):
        transfers.store(tier, 0, page(), "p")


def test_a_link_is_busy_while_anything_is_under_way(clock: Clock) -> None:
    def advance() -> None:
        clock.now += 10.0

    began, together = Event(), Barrier(2, action=advance)

    def write_begins() -> None:
        began.set()
        together.wait()

    tier = WatchedTier(write_begins)
    with closing(Transfers(threads=2, timeout=60.0)) as transfers:
        for turn in (1, 2):
            began.clear()
            tickets = [transfers.store(tier, 0, page(), "p")]
            began.wait()
            clock.now += 5.0  # one under way, then two
            tickets.append(transfers.store(tier, 1, page(), "p"))
            for ticket in tickets:
                ticket.wait()
            clock.now += 100.0  # idle
            link = transfers.stats.links["device->host"]
            assert link == LinkStats(bytes=2 * turn * PAGE, count=2 * turn, seconds=15.0 * turn)


def test_waiting_is_counted(clock: Clock) -> None:
    began, go = Event(), Event()

    def write_begins() -> None:
        began.set()
        go.wait()
        clock.now += 3.0

    def release() -> None:
        clock.asked.wait()  # until the wait has begun
        go.set()

    with closing(Transfers(threads=1, timeout=60.0)) as transfers:
        ticket = transfers.store(WatchedTier(write_begins), 0, page(), "p")
        began.wait()
        assert transfers.stats.stall_seconds == 0.0
        clock.asked.clear()
        Thread(target=release).start()
        ticket.wait()
        assert transfers.stats.stall_seconds == 3.0
        ticket.wait()
        assert transfers.stats.stall_seconds == 3.0
