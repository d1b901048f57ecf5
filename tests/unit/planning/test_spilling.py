"""Steps that spill, played."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ciuic_dist.planning.forecast import DoesNotFit, Forecast, forecast
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.spilling import with_transfers
from ciuic_dist.planning.training import Choice, Training
from tests.unit.planning import jobs
from tests.unit.planning.jobs import MIB, kept, machine, stack

MODEL = stack([1_000_000] * 8, 1000, seconds=1e-3)
WHERE = machine(16 * MIB, host=1 << 30, link=1e9)
"""No state stays, nor do gradients; nor do all parameters."""

Job = tuple[Profile, Machine, Training]


def both(
    choice: Choice, where: Machine = WHERE, profile: Profile = MODEL, training: Training | None = None
) -> tuple[Forecast, Forecast]:
    """By the closed form, and played."""
    training = training or Training(choice.accumulation, 8)
    expected = forecast(profile, where, training, choice)
    return expected, with_transfers(profile, where, training, choice, expected)


def test_what_fits_is_not_played() -> None:
    expected, played = both(kept(MODEL), machine(1000 * MIB))
    assert played is expected


@settings(max_examples=40)
@given(jobs.jobs(), st.data())
def test_playing_never_makes_it_quicker_or_moves_less(job: Job, data: st.DataObject) -> None:
    profile, where, training = job
    choice = data.draw(jobs.choices(profile, where))
    try:
        expected, played = both(choice, where, profile, training)
    except DoesNotFit:
        assume(False)
    assert played.seconds >= expected.seconds >= played.bound * (1 - 1e-9)
    assert played.up >= expected.up
    assert played.down >= expected.down


def test_parameters_come_for_every_micro_batch() -> None:
    steps = [both(kept(MODEL, accumulation=count)) for count in (2, 3, 4, 7)]
    assert all(expected.spilled.parameters > 5_000_000 for expected, _ in steps)
    times, ups = zip(*((played.seconds, played.up) for _, played in steps), strict=True)
    assert times[1] - times[0] == pytest.approx(times[2] - times[1])
    assert times[3] - times[2] == pytest.approx(3 * (times[2] - times[1]))
    each = ups[2] - ups[1]
    assert ups[3] - ups[2] == pytest.approx(3 * each)
    spilled = steps[0][0].spilled
    assert each == pytest.approx(2 * spilled.parameters + spilled.gradients, rel=0.1), "some stay at the turn"


def test_the_root_is_among_what_can_not_leave_and_not_among_what_moves() -> None:
    """Its weight once, its gradient twice and a page: there is room for these, and for no second weight."""
    profile = stack([100_000] * 4, 1_000_000, seconds=1e-3)
    weights, gradients = 2_000_000 + 4_000_000, 4_000_000
    expected, played = both(kept(profile), machine(5000 + weights + gradients + 700_000, host=1 << 30), profile)
    assert expected.footprint.pinned == 5000 + weights
    assert expected.spilled.total > 0
    assert played.seconds < expected.unspilled + expected.up / 1e9 + expected.down / 1e9, "something hides"


def test_the_update_takes_as_long_as_it_was_measured_to() -> None:
    slow = replace(WHERE, update=1e5)
    expected, played = both(kept(MODEL), slow, training=Training(1, 8, clips=False))
    assert expected.updating == pytest.approx(MODEL.parameters / 1e5)
    assert played.seconds >= expected.seconds > expected.updating


def test_what_the_processor_does_for_transfers_comes_on_top_of_computing() -> None:
    """Whatever hides behind that; slow links are waited for anyway, and it hides there like computing does."""
    for link, least, most in ((1e12, 0.99, 1.01), (6e8, 0.99, 1.01), (1e7, 0.0, 0.9)):
        plain = machine(16 * MIB, host=1 << 30, link=link)
        (_, without), (expected, played) = both(kept(MODEL), plain), both(kept(MODEL), replace(plain, moving=1e-10))
        assert least <= (played.seconds - without.seconds) / expected.handling <= most
