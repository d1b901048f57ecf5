"""Saved activations on their way: slow, failing and full tiers, and tensors written to meanwhile."""

from __future__ import annotations

import weakref
from threading import Event, Lock

import pytest
import torch
from torch import Tensor, nn

from ciuic_dist.memory.activations import ActivationStore
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.tier import PageError, Tier
from ciuic_dist.memory.transfer import Ticket, Transfers
from tests.unit.memory.stored import PAGE, SLOTS, assert_empty, assert_equal, gradients, loss_of, reads, store_of


class Gated(RamTier):
    """Writes wait for ``gate``, reads for ``read_gate``, which is open."""

    def __init__(self, slots: int = SLOTS) -> None:
        super().__init__("host", PAGE, slots)
        self.gate, self.read_gate = Event(), Event()
        self.read_gate.set()

    def write(self, slot: int, source: Tensor, name: str) -> None:
        assert self.gate.wait(60)
        super().write(slot, source, name)

    def read(self, slot: int, into: Tensor, name: str) -> None:
        assert self.read_gate.wait(60)
        super().read(slot, into, name)


@pytest.mark.parametrize("settled", [False, True])
def test_what_is_not_yet_written_is_not_read(settled: bool, model: nn.ModuleList, transfers: Transfers) -> None:
    tier = Gated()
    store = store_of(tier, transfers, model, under_way=1 << 30)
    loss_of(model, None).backward()
    expected = gradients(model)
    loss = loss_of(model, store)
    for index in range(len(model)):
        store.prefetch(index)
    if settled:
        tier.gate.set()
        store.settle()
    loss.backward()
    assert_equal(gradients(model), expected)
    assert reads(transfers) == 0
    tier.gate.set()
    assert_empty(store, tier)


def test_a_write_under_way_outlives_its_graph(transfers: Transfers) -> None:
    tier = Gated()
    store = store_of(tier, transfers)
    leaf = torch.randn(PAGE, requires_grad=True)
    with store.saving(0):
        result = leaf.exp()
    del result
    store.prefetch(0)
    assert tier.pool.used == 4, "its slots are still written to"
    tier.gate.set()
    assert_empty(store, tier)


def test_a_read_under_way_outlives_its_graph(transfers: Transfers) -> None:
    tier = Gated()
    tier.gate.set()
    tier.read_gate.clear()
    store = store_of(tier, transfers)
    leaf = torch.randn(PAGE, requires_grad=True)
    with store.saving(0):
        result = leaf.exp()
    store.settle()
    store.prefetch(0)
    del result
    store.prefetch(0)
    assert tier.pool.used == 4, "its slots are still read from"
    tier.read_gate.set()
    assert_empty(store, tier)


def test_a_retained_graph_is_read_before_it_is_written(transfers: Transfers) -> None:
    tier = Gated()
    store = store_of(tier, transfers)
    leaf = torch.zeros(PAGE, requires_grad=True)
    with store.saving(0):
        result = leaf.exp().sum()
    for _ in range(2):
        result.backward(retain_graph=True)
    assert leaf.grad is not None
    assert leaf.grad.eq(2.0).all()
    tier.gate.set()
    del result
    assert_empty(store, tier)


def test_slots_that_are_still_written_to_are_waited_for(transfers: Transfers) -> None:
    tier = Gated(slots=4)

    class Opening(ActivationStore):
        def settle(self) -> None:
            tier.gate.set()
            super().settle()

    cpu = torch.device("cpu")
    store = Opening(
        [tier],
        transfers,
        page_bytes=tier.page_bytes,
        least_bytes=1,
        bytes_under_way=1 << 20,
        device=cpu,
        keep=lambda _: False,
    )
    leaf = torch.randn(PAGE, requires_grad=True)
    for _ in range(2):
        with store.saving(0):
            result = leaf.exp()
        del result
    assert tier.gate.is_set()
    assert_empty(store, tier)


@pytest.mark.parametrize("least_bytes", [1, 1 << 20])
def test_writing_to_what_was_saved_is_an_error(least_bytes: int, transfers: Transfers) -> None:
    tier = Gated()
    store = store_of(tier, transfers, least_bytes=least_bytes)
    leaf = torch.randn(PAGE, requires_grad=True)
    for settled in (False, True):
        tier.gate.clear()
        with store.saving(0):
            value = leaf.exp()
            result = value.sum()
        with torch.no_grad():
            value.mul_(2)
        if settled:
            tier.gate.set()
            store.settle()
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation: .* is at version 1; expected"):
            result.backward()
        tier.gate.set()
        del value, result
        assert_empty(store, tier)


def test_what_was_written_to_is_stored_anew(tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers)
    scale, leaf = torch.full((PAGE,), 2.0), torch.ones(PAGE, requires_grad=True)
    with store.saving(0):
        first = leaf * scale
    store.settle()
    scale.fill_(5.0)
    with store.saving(0):
        second = leaf * scale
    second.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.eq(5.0).all()
    del first, second
    assert_empty(store, tier)


class Counting(Transfers):
    """Knows the most bytes that were ever under way."""

    def __init__(self) -> None:
        super().__init__(2, timeout=60.0)
        self.now = self.most = 0
        self.guard = Lock()

    def store(self, tier: Tier, slot: int, source: Tensor, name: str) -> Ticket:
        with self.guard:
            self.now += source.numel()
            self.most = max(self.most, self.now)
        return super().store(tier, slot, source, name)


class Counted(RamTier):
    def __init__(self, transfers: Counting) -> None:
        super().__init__("host", PAGE, SLOTS)
        self.transfers = transfers

    def write(self, slot: int, source: Tensor, name: str) -> None:
        super().write(slot, source, name)
        with self.transfers.guard:
            self.transfers.now -= source.numel()


def test_bytes_under_way_are_bounded(model: nn.ModuleList) -> None:
    transfers = Counting()
    tier = Counted(transfers)
    largest = 2 * 32 * 64 * 4 * 4
    store = store_of(tier, transfers, model, under_way=largest)
    loss_of(model, store).backward()
    assert largest / 2 < transfers.most <= largest
    assert_empty(store, tier)
    transfers.close()


class Broken(RamTier):
    """Fails to do one thing to one page."""

    def __init__(self, what: str) -> None:
        super().__init__("host", PAGE, SLOTS)
        self.what = what

    def write(self, slot: int, source: Tensor, name: str) -> None:
        if self.what == "write" and slot == 2:
            raise PageError(f"{name} can't be written to {self.name}")
        super().write(slot, source, name)

    def read(self, slot: int, into: Tensor, name: str) -> None:
        if self.what == "read" and slot == 2:
            raise PageError(f"{name} can't be read from {self.name}")
        super().read(slot, into, name)


@pytest.mark.parametrize(("what", "done"), [("write", "written"), ("read", "read")])
@pytest.mark.parametrize("prefetch", [False, True])
def test_errors_of_the_tier_are_raised_in_backward(what: str, done: str, prefetch: bool, transfers: Transfers) -> None:
    tier = Broken(what)
    store = store_of(tier, transfers)
    leaf = torch.randn(PAGE, requires_grad=True)
    with store.saving(3):
        result = leaf.exp().sum()
    store.settle()
    if prefetch:
        store.prefetch(3)
        store.settle()
    for _ in range(2):
        with pytest.raises(
            PageError, match=rf"activations of unit 3, \(4096,\) of torch.float32 page 2 can't be {done}"
        ):
            result.backward()
    del result
    assert_empty(store, tier)


def test_the_graph_is_freed_though_tensors_are_kept(tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers, least_bytes=1 << 30)
    leaf = torch.randn(PAGE, requires_grad=True)
    with store.saving(0):
        value = leaf.exp()
    alive = weakref.ref(value.untyped_storage())
    del value
    assert alive() is None, "a result is not held by what its own graph has saved"
