"""Schedules computed by hand, and what holds for every schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay.peers import demand, look_ahead, markov, min_on_demand, oldest, peers
from ciuic_dist.planning import simulate as module
from ciuic_dist.planning.choose import candidates
from ciuic_dist.planning.policy import Policy, rotating, static_ring
from ciuic_dist.planning.profile import Recipe, training_step
from ciuic_dist.planning.simulate import CYCLES, simulate
from ciuic_dist.planning.trace import Item, Kind, Op, Trace
from ciuic_dist.planning.two_tier import BudgetTooSmall, TwoTier
from ciuic_dist.planning.view import View
from tests.unit.planning.traces import dense, machine, scan, traces


def test_what_fits_is_fetched_once() -> None:
    outcome = simulate(scan([0, 1], dirty=True), machine(20), rotating())
    assert (outcome.seconds, outcome.stall, outcome.up, outcome.down) == (2.0, 0.0, 0.0, 0.0)


def test_room_for_one_dirty_item_leaves_nothing_to_overlap() -> None:
    outcome = simulate(scan([0, 1], dirty=True), machine(10), rotating())
    assert (outcome.seconds, outcome.misses, outcome.up, outcome.down) == (6.0, 2.0, 20.0, 20.0)


def test_a_ring_of_two_slots_hides_what_the_link_can_carry() -> None:
    trace = scan([0, 1, 2, 3])
    outcome = simulate(trace, machine(30), static_ring(trace, 30, 20))
    assert (outcome.seconds, outcome.misses, outcome.up, outcome.down) == (4.0, 0.0, 30.0, 0.0)


def test_lru_misses_all_of_a_scan_and_min_the_share_that_it_must() -> None:
    trace = scan([0, 1, 2, 3])
    lru = simulate(trace, machine(30), demand("LRU", oldest, trace))
    best = simulate(trace, machine(30), min_on_demand(trace))
    assert (lru.misses, lru.seconds) == (4.0, 8.0)
    assert best.misses == pytest.approx(4 / 3), "N (N - room) / (N - 1), N = 4"
    assert best.seconds == pytest.approx(4 + 4 / 3)


@pytest.mark.parametrize("room", [10, 20, 30])
def test_lru_is_as_good_as_min_on_parameters_alone(room: int) -> None:
    trace = scan([0, 1, 2, 3, 3, 2, 1, 0], kind=Kind.PARAMETER)
    lru = simulate(trace, machine(room), demand("LRU", oldest, trace))
    assert lru.misses == simulate(trace, machine(room), min_on_demand(trace)).misses


def test_a_markov_chain_of_order_one_errs_on_parameters_where_order_two_does_not() -> None:
    trace = scan([0, 1, 2, 3, 3, 2, 1, 0], kind=Kind.PARAMETER)
    one = simulate(trace, machine(20), markov("one", 1, trace, 1))
    two = simulate(trace, machine(20), markov("two", 2, trace, 1))
    exact = simulate(trace, machine(20), look_ahead("exact", oldest, trace, 1))
    assert two.seconds == exact.seconds < one.seconds


def test_what_is_created_is_not_fetched_and_what_is_discarded_not_written() -> None:
    items = (Item("weight", 10, Kind.PARAMETER), Item("gradient", 10, Kind.GRADIENT))
    backward = Op("backward", (1,), (1,), creates=(1,), seconds=1.0)
    update = Op("update", (1,), discards=(1,), seconds=1.0)
    outcome = simulate(Trace(items, (Op("forward", (0,), seconds=1.0), backward, update)), machine(10), rotating())
    assert (outcome.seconds, outcome.up, outcome.down) == (4.0, 10.0, 0.0)


def test_one_way_at_a_time_takes_longer() -> None:
    trace = scan([0, 1, 2, 3], dirty=True)
    both = simulate(trace, machine(20, link=5.0), rotating())
    one = simulate(trace, machine(20, link=5.0, duplex=False), rotating())
    assert one.seconds > both.seconds


def test_only_what_is_evicted_is_written_back_unless_ahead_of_time() -> None:
    trace = training_step(dense(32, 202_383_360, 262_410_240, tokens=2048), Recipe(page=1 << 29))
    where = TwoTier(400e12, 3.35e12, 60 * 10**9 + trace.transient, 50e9, 50e9)
    late, early = simulate(trace, where, rotating()), simulate(trace, where, rotating(background=True))
    assert late.down <= late.up
    assert early.down > early.up


def test_writing_back_early_pays_where_gradients_need_room_at_once() -> None:
    trace = training_step(dense(32, 202_383_360, 262_410_240, tokens=4096), Recipe(page=1 << 29, fused=False))
    where = TwoTier(400e12, 3.35e12, 47 * 10**9, 50e9, 50e9)
    late, early = (
        simulate(trace, where, static_ring(trace, 47 * 10**9, 4 << 30, background=background))
        for background in (False, True)
    )
    assert early.seconds < late.seconds


def test_static_items_that_leave_too_little_room_are_refused() -> None:
    with pytest.raises(BudgetTooSmall, match="smallest budget that works is 30 bytes"):
        simulate(scan([0, 1, 2]), machine(25), Policy("greedy", static=frozenset([0, 1])))


class Checked(module._Run):
    """Counts bytes by itself, and sees that each operation has what it uses."""

    def _finish(self) -> None:
        on_device = {*self.view.resident, *self.leaving, *([self.rising.item] if self.rising else [])}
        room = self.machine.room(self.trace)
        assert self.trace.bytes_of(on_device) == room - self.free <= room
        assert set(self.view.pinned) <= self.view.resident
        assert not self.view.absent & on_device
        super()._finish()


@given(traces(), st.integers(1, 40), st.booleans(), st.data())
def test_every_policy_serves_every_use_within_its_budget(
    trace: Trace, extra: int, duplex: bool, data: st.DataObject
) -> None:
    where = machine(trace.largest + extra, duplex=duplex)
    room = where.room(trace)
    if not trace.accesses:
        return
    policy = data.draw(st.sampled_from([*candidates(trace, room), *peers(trace, room)]), label="policy")
    seconds = [where.seconds(op) for op in trace.ops]
    run = Checked(trace, where, policy, seconds, View(trace), free=room, least=room)
    for _ in range(3):
        run.cycle()
    assert run.least >= 0
    assert run.counters.seconds >= 3 * sum(seconds) - 1e-6


@given(st.lists(st.integers(0, 5), min_size=1, max_size=10), st.integers(1, 6))
def test_min_misses_at_most_what_lru_misses(order: list[int], slots: int) -> None:
    trace = scan(order)
    best, lru = (
        simulate(trace, machine(10 * slots), policy) for policy in (min_on_demand(trace), demand("LRU", oldest, trace))
    )
    if best.cycles < CYCLES:  # settled
        assert best.misses <= lru.misses + 1e-9


def test_a_step_that_can_not_run_is_refused() -> None:
    with pytest.raises(BudgetTooSmall):
        simulate(scan([0, 1]), machine(9), rotating())
