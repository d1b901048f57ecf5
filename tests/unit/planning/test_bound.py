from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciuic_dist.planning.bound import lower_bound
from ciuic_dist.planning.choose import candidates, choose
from ciuic_dist.planning.profile import Recipe, training_step
from ciuic_dist.planning.simulate import CYCLES, simulate
from ciuic_dist.planning.trace import Trace
from ciuic_dist.planning.two_tier import TwoTier
from tests.unit.planning.traces import dense, machine, scan, traces

pytest.importorskip("scipy")


def test_what_fits_is_bound_by_computing() -> None:
    assert lower_bound(scan([0, 1, 2]), machine(30)) == 3.0


def test_a_scan_is_bound_by_what_min_must_fetch() -> None:
    bound = lower_bound(scan([0, 1, 2, 3]), machine(30, link=1.0))
    assert bound == pytest.approx(40 / 3), "N (N - room) / (N - 1) items of ten seconds, N = 4"


@settings(max_examples=50)
@given(traces(), st.integers(1, 30), st.booleans(), st.integers(1, 3))
def test_no_schedule_beats_the_bound(trace: Trace, extra: int, duplex: bool, merge: int) -> None:
    where = machine(trace.largest + extra, link=3.0, duplex=duplex)
    bound = lower_bound(trace, where, merge)
    assert bound >= sum(map(where.seconds, trace.ops)) - 1e-6
    for policy in candidates(trace, where.room(trace)):
        outcome = simulate(trace, where, policy)
        if outcome.cycles < CYCLES:  # settled
            assert outcome.seconds >= bound * (1 - 1e-6)


@settings(max_examples=20)
@given(traces(), st.integers(1, 30))
def test_fewer_cuts_never_raise_the_bound(trace: Trace, extra: int) -> None:
    where = machine(trace.largest + extra, link=3.0)
    assert lower_bound(trace, where, 2) <= lower_bound(trace, where) + 1e-6


@pytest.mark.parametrize(("tokens", "seconds"), [(8192, 2.489), (16384, 3.299)])
def test_a_model_of_13b_is_near_the_bound_and_the_published_figures(tokens: int, seconds: float) -> None:
    """60 GB of room on an H100, 400 TFLOP/s, 50 GB/s each way."""
    trace = training_step(dense(40, 317_204_480, 327_685_120, tokens), Recipe(page=1 << 28))
    choice = choose(trace, TwoTier(400e12, 3.35e12, 60 * 10**9 + trace.transient, 50e9, 50e9), bounded=True)
    assert choice.bound == pytest.approx(seconds, rel=0.015)
    assert choice.over_bound is not None
    assert 1 <= choice.over_bound <= 1.01
    assert choice.outcome.seconds == min(choice.outcome.seconds, *(outcome.seconds for outcome in choice.others))
