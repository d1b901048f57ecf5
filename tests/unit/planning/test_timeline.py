"""What a played step says happened when."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ciuic_dist.planning.levels import Levels
from ciuic_dist.planning.policy import rotating
from ciuic_dist.planning.simulate import record, simulate
from ciuic_dist.planning.timeline import Span, Timeline
from ciuic_dist.planning.trace import Item, Kind, Op, Trace
from tests.unit.planning.traces import machine, scan, traces


def links(timeline: Timeline, *, duplex: bool) -> list[list[tuple[float, float]]]:
    """When each link is busy."""
    found = [[(t.start, t.end) for t in timeline.transfers if t.up is up] for up in (True, False)]
    return found if duplex else [sorted(found[0] + found[1])]


def test_one_item_leaves_before_the_other_comes() -> None:
    timeline = record(scan([0, 1], dirty=True), machine(10), rotating())
    assert timeline.seconds == 6.0
    assert timeline.ops == (Span("op 0", 2.0, 3.0), Span("op 1", 5.0, 6.0))
    assert [(t.item.name, t.up, t.start, t.end) for t in timeline.transfers] == [
        ("item 1", False, 0.0, 1.0),
        ("item 0", True, 1.0, 2.0),
        ("item 0", False, 3.0, 4.0),
        ("item 1", True, 4.0, 5.0),
    ]
    assert set(timeline.device.total) == {10}
    assert set(timeline.below.total) == {10}


def test_what_is_created_and_discarded_is_nowhere_else() -> None:
    items = (Item("weight", 10, Kind.PARAMETER), Item("gradient", 7, Kind.GRADIENT))
    ops = (
        Op("forward", (0,), seconds=1.0),
        Op("backward", (1,), (1,), creates=(1,), seconds=1.0),
        Op("update", (1,), discards=(1,), seconds=1.0),
    )
    timeline = record(Trace(items, ops), machine(20), rotating())
    assert timeline.device.moments[:2] == (0.0, 1.0)
    assert timeline.device.nbytes[Kind.GRADIENT][:2] == (0, 7)
    assert set(timeline.device.nbytes[Kind.PARAMETER]) == {10}
    assert set(timeline.below.total) == {0}


@given(traces(), st.integers(0, 40), st.booleans())
def test_links_carry_one_item_at_a_time_and_what_they_are_said_to(trace: Trace, extra: int, duplex: bool) -> None:
    assume(trace.accesses)
    where = machine(trace.largest + extra, link=3.0, duplex=duplex)
    timeline, outcome = record(trace, where, rotating()), simulate(trace, where, rotating())
    for busy in links(timeline, duplex=duplex):
        assert all(before[1] <= after[0] for before, after in pairwise(busy))
    assert all(0 <= t.start < t.end <= timeline.seconds for t in timeline.transfers)
    rounds = timeline.seconds / outcome.seconds
    largest = max(item.size for item in trace.items)
    for up, nbytes in ((True, outcome.up), (False, outcome.down)):
        own = [t for t in timeline.transfers if t.up is up]
        cut = any(t.start == 0 or t.end == timeline.seconds for t in own)  # counted where it began
        assert sum(t.nbytes for t in own) == pytest.approx(nbytes * rounds, abs=cut * largest + 1e-6)
        assert sum(t.end - t.start for t in own) * 3.0 == pytest.approx(sum(t.nbytes for t in own))


@given(traces(), st.integers(0, 40))
def test_the_device_holds_no_more_than_its_budget_and_the_rest_lies_below(trace: Trace, extra: int) -> None:
    assume(trace.accesses)
    where = machine(trace.largest + extra, link=3.0)
    timeline = record(trace, where, rotating())
    assert max(timeline.device.total) <= where.room(trace)
    used = [item for item, uses in enumerate(trace.uses) if uses]
    made = {item for op in trace.ops for item in op.creates}
    for moment in {*timeline.device.moments, *timeline.below.moments}:
        there = sum(levels.cut(moment, timeline.seconds).total[0] for levels in (timeline.device, timeline.below))
        assert trace.bytes_of(set(used) - made) <= there <= trace.bytes_of(used)


@given(traces(), st.integers(0, 40))
def test_operations_follow_each_other_round_by_round(trace: Trace, extra: int) -> None:
    assume(trace.accesses)
    where = machine(trace.largest + extra, link=3.0)
    timeline = record(trace, where, rotating())
    rounds, rest = divmod(len(timeline.ops), len(trace.ops))
    assert (rounds > 0, rest) == (True, 0)
    assert [op.name for op in timeline.ops] == rounds * [op.name for op in trace.ops]
    assert timeline.ops[-1].end == timeline.seconds
    assert all(before.end <= after.start for before, after in pairwise(timeline.ops))


def test_a_part_of_the_time_has_a_part_of_a_transfer() -> None:
    timeline = record(scan([0, 1, 2], dirty=True), machine(20, link=4.0), rotating())
    last = timeline.last(1)
    assert last.ops == (Span("op 2", last.seconds - 1, last.seconds),)
    start = timeline.seconds - last.seconds
    under_way = next(t for t in timeline.transfers if t.start < start < t.end)
    first = last.transfers[0]
    assert (first.item, first.start, first.end) == (under_way.item, 0.0, under_way.end - start)
    assert first.nbytes == pytest.approx((under_way.end - start) * 4)


def test_levels_hold_until_they_change() -> None:
    levels = Levels((0.0, 2.0, 3.0), {"a": (1, 5, 0)})
    assert levels.cut(1.0, 3.0) == Levels((0.0, 1.0), {"a": (1, 5)})
    both = levels.beside(Levels((0.0, 2.5), {"b": (10, 20)}))
    assert both == Levels((0.0, 2.0, 2.5, 3.0), {"a": (1, 5, 5, 0), "b": (10, 10, 20, 20)})
    assert both.total == (11, 15, 25, 20)
