"""The pool of slots, against a model of it."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ciuic_dist.memory.pool import PageMisuse, PoolFull, SlotPool

picks = st.integers(0, 1000)


class PoolMachine(RuleBasedStateMachine):
    """``pins`` has every slot that should be in use."""

    pool: SlotPool
    pins: dict[int, int]

    @initialize(slots=st.integers(0, 6))
    def begin(self, slots: int) -> None:
        self.pool = SlotPool(slots)
        self.pins = {}
        self.peak = 0

    def pick(self, pick: int) -> int:
        return sorted(self.pins)[pick % len(self.pins)]

    @rule()
    def alloc(self) -> None:
        free = sorted(set(range(self.pool.slots)) - set(self.pins))
        if free:
            assert self.pool.alloc() == free[0]
            self.pins[free[0]] = 0
            self.peak = max(self.peak, len(self.pins))
        else:
            with pytest.raises(PoolFull, match=f"all {self.pool.slots} slots"):
                self.pool.alloc()

    @precondition(lambda self: self.pins)
    @rule(pick=picks)
    def free(self, pick: int) -> None:
        slot = self.pick(pick)
        if self.pins[slot]:
            with pytest.raises(PageMisuse, match=f"slot {slot} is pinned {self.pins[slot]} times"):
                self.pool.free(slot)
        else:
            self.pool.free(slot)
            del self.pins[slot]

    @precondition(lambda self: self.pins)
    @rule(pick=picks)
    def pin(self, pick: int) -> None:
        slot = self.pick(pick)
        self.pool.pin(slot)
        self.pins[slot] += 1

    @precondition(lambda self: self.pins)
    @rule(pick=picks)
    def unpin(self, pick: int) -> None:
        slot = self.pick(pick)
        if self.pins[slot]:
            self.pool.unpin(slot)
            self.pins[slot] -= 1
        else:
            with pytest.raises(PageMisuse, match=f"slot {slot} is not pinned"):
                self.pool.unpin(slot)

    @rule(slot=st.integers(-2, 8))
    def use_what_is_not_in_use(self, slot: int) -> None:
        if slot in self.pins:
            return
        kind = "free" if slot in range(self.pool.slots) else "none of"
        for operation in (self.pool.free, self.pool.pin, self.pool.unpin, self.pool.is_pinned, self.pool.check_used):
            with pytest.raises(PageMisuse, match=f"slot {slot} is {kind}"):
                operation(slot)

    @rule()
    def look_for_leaks(self) -> None:
        if self.pins:
            with pytest.raises(PageMisuse, match=f"never freed: {', '.join(map(str, sorted(self.pins)))}$"):
                self.pool.check_empty()
        else:
            self.pool.check_empty()

    @invariant()
    def counts_agree(self) -> None:
        assert (self.pool.used, self.pool.free_slots) == (len(self.pins), self.pool.slots - len(self.pins))
        assert self.pool.peak == self.peak
        for slot, pins in self.pins.items():
            self.pool.check_used(slot)
            assert self.pool.is_pinned(slot) == (pins > 0)


TestPool = PoolMachine.TestCase


def test_many_leaks_fit_one_line() -> None:
    pool = SlotPool(1000)
    for _ in range(1000):
        pool.alloc()
    with pytest.raises(PageMisuse, match=r"never freed: 0, 1, 2, 3, 4, 5, 6, 7 and 992 more$"):
        pool.check_empty()
