"""What is spilled, and how much more memory what doesn't fit would need."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.footprint import footprint
from ciuic_dist.planning.forecast import DoesNotFit, Spilled, forecast
from ciuic_dist.planning.lanes import lanes
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Choice, Training
from tests.unit.planning import jobs
from tests.unit.planning.jobs import MIB, kept, machine, page_of, stack

MODEL = stack([1_000_000] * 8, 1000)
TRAINING = Training(1, 8)
TOTAL = footprint(MODEL, TRAINING, kept(MODEL), machine(), spills=True).total

Job = tuple[Profile, Machine, Training]


def fits(profile: Profile, where: Machine, training: Training, choice: Choice) -> bool:
    try:
        forecast(profile, where, training, choice)
    except DoesNotFit:
        return False
    return True


@given(jobs.jobs(), st.data())
def test_nothing_is_spilled_that_fits(job: Job, data: st.DataObject) -> None:
    profile, where, training = job
    choice = replace(data.draw(jobs.choices(profile, where)), below=False)
    where = replace(where, memory=footprint(profile, training, choice, where, spills=False).total)
    found = forecast(profile, where, training, choice)
    assert found.spilled == Spilled()
    assert (found.device, found.host, found.nvme, found.up, found.down) == (where.memory, 0, 0, 0, 0)
    assert found.seconds == found.unspilled == lanes(profile, where, training, choice).seconds
    assert found.bound <= found.seconds * (1 + 1e-9)


@given(jobs.jobs(), st.data())
def test_state_leaves_first_then_gradients_then_parameters(job: Job, data: st.DataObject) -> None:
    profile, where, training = job
    choice = data.draw(jobs.choices(profile, where))
    where = replace(where, host=1 << 40, up=1e6, down=1e6)
    assume(fits(profile, where, training, choice))
    found = forecast(profile, where, training, choice)
    spilled, needs = found.spilled, found.footprint
    assert not spilled.gradients or spilled.state == needs.state
    assert not spilled.parameters or spilled.gradients == needs.gradients
    away = spilled.total - spilled.activations
    assert needs.total - away + (min(needs.passing, away) if away else 0) <= where.memory, "what passes has room"
    assert found.device <= where.memory


def test_a_budget_may_be_needed_though_nothing_is_spilled() -> None:
    """For the gradients' column is there without one, even where each unit is updated in the backward.

    The root's stays in either case; on its way it is fp32 under a budget, else bf16.
    """
    training, choice = replace(TRAINING, clips=False), kept(MODEL)
    most, least = (footprint(MODEL, training, choice, machine(), spills=spills).total for spills in (False, True))
    assert most - least == 8_000_000 * 4 - 1000 * 2
    for memory, spills in ((most, False), (most - 1, True), (least, True)):
        found = forecast(MODEL, machine(memory), training, choice)
        assert (found.spills, found.spilled) == (spills, Spilled())


@pytest.mark.parametrize(
    ("short", "spilled"),
    [
        (
            2001,
            lambda passing: Spilled(0, 0, 2001 + passing),
        ),  # without a budget the root's gradients are half as large
        (20_000_000, lambda passing: Spilled(0, 0, 20_000_000 + passing)),
        (80_010_000, lambda passing: Spilled(0, passing, 80_010_000)),
        (112_014_000, lambda passing: Spilled(passing, 32_004_000, 80_010_000)),
    ],
)
def test_what_is_spilled_by_hand(short: int, spilled: object) -> None:
    where = machine(TOTAL - short, host=1 << 30)
    found = forecast(MODEL, where, TRAINING, kept(MODEL))
    passing = 3 * 2_000_000 + 12 * page_of(where)
    assert callable(spilled)
    assert found.spilled == spilled(passing)
    assert (found.device, found.host) == (where.memory, short + passing)


def test_what_fits_without_a_budget_takes_none() -> None:
    where = machine(TOTAL - 2000, host=1 << 30)
    found = forecast(MODEL, where, TRAINING, kept(MODEL))
    assert (found.spills, found.spilled, found.device) == (False, Spilled(), TOTAL - 2000)
    with pytest.raises(DoesNotFit) as caught:
        forecast(MODEL, replace(where, memory=TOTAL - 2001, host=0), TRAINING, kept(MODEL))
    assert caught.value.device == TOTAL - 2000


def test_parameters_move_for_every_pass_gradients_for_every_micro_batch_and_state_once() -> None:
    where = machine(TOTAL - 115_000_000, host=1 << 30, link=1e8)
    choice = replace(kept(MODEL, accumulation=3), ways=(Way.OFFLOAD,) * 8, below=True)
    found = forecast(MODEL, where, TRAINING, choice)
    spilled = found.spilled
    assert spilled.activations == 8000
    assert spilled.parameters > 0
    assert found.up == spilled.state + 3 * spilled.gradients + 6 * spilled.parameters + 3 * 8000
    assert found.down == spilled.state + 3 * spilled.gradients + spilled.parameters + 3 * 8000
    assert found.resources["link to the host"] == pytest.approx(found.up / 1e8)
    both = forecast(MODEL, replace(where, duplex=False), TRAINING, choice)
    assert both.resources["link to the host"] == pytest.approx((found.up + found.down) / 1e8)


@pytest.mark.parametrize(("devices", "stage", "times"), [(1, 0, 4), (2, 0, 1), (2, 1, 1), (2, 2, 4), (2, 3, 4)])
def test_gradients_move_as_often_as_they_are_reduced(devices: int, stage: int, times: int) -> None:
    """With several ranks below stage 2 that is once a step: until then each has its own."""
    where = machine(40 * MIB, devices=devices, host=1 << 30)
    found = forecast(MODEL, where, Training(4 * devices, 8), kept(MODEL, stage, accumulation=4))
    spilled = found.spilled
    assert spilled.gradients > 0
    assert found.up == spilled.state + times * spilled.gradients + 8 * spilled.parameters
    assert found.down == spilled.state + times * spilled.gradients + spilled.parameters


@pytest.mark.parametrize(("devices", "stage", "holders"), [(1, 0, 1), (2, 0, 1), (2, 1, 2), (2, 3, 2)])
def test_transfers_take_the_processor_from_computing(devices: int, stage: int, holders: int) -> None:
    """A byte up or down once; one of parameters on every rank that sees them, in each forward and backward."""
    plain = replace(machine(devices=devices, host=1 << 30), shared=True)
    choice, training = kept(MODEL, stage, accumulation=2), Training(2 * devices, 8)
    needs = footprint(MODEL, training, choice, plain, spills=True)
    plain = replace(plain, memory=needs.total - needs.state - needs.gradients)
    where = replace(plain, moving=1e-9, showing=1e-10)
    without, found = (forecast(MODEL, each, training, choice) for each in (plain, where))
    assert found.spilled.parameters > 0
    assert found.handling == pytest.approx(
        (found.up + found.down) * 1e-9 + 4 * found.spilled.parameters * holders * 1e-10
    )
    assert without.handling == 0
    assert found.seconds == pytest.approx(without.seconds + found.handling)
    assert found.resources["computation"] == pytest.approx(without.resources["computation"] + found.handling)
    assert found.unspilled == without.unspilled


def test_a_slow_link_to_the_host_bounds_the_step() -> None:
    found = forecast(MODEL, machine(TOTAL - 20 * MIB, host=1 << 30, link=1e3), TRAINING, kept(MODEL))
    assert found.limit == "link to the host"
    assert found.seconds == found.bound == found.resources["link to the host"] > found.unspilled


def test_drives_take_what_the_host_can_not() -> None:
    where = replace(machine(TOTAL - 20 * MIB, host=10 * MIB, link=1e9), nvme=1 << 30, read=2e6, write=1e6)
    found = forecast(MODEL, where, TRAINING, kept(MODEL))
    assert (found.host, found.host + found.nvme) == (10 * MIB, found.spilled.total)
    assert found.resources["drives"] == pytest.approx(found.nvme / 2e6 + found.nvme / 1e6)
    assert found.limit == "drives"


def test_the_root_and_what_is_kept_is_not_offloaded() -> None:
    where = machine(1 << 30, host=1 << 30)
    ways = (Way.OFFLOAD, Way.RECOMPUTE, *(Way.KEEP,) * 6)
    found = forecast(MODEL, where, TRAINING, Choice(0, 1, 1, ways, below=True))
    assert found.spilled == Spilled(activations=1000 + 200), "what was saved, and inputs"


@given(jobs.jobs(), st.data())
def test_the_device_that_would_do_is_the_smallest(job: Job, data: st.DataObject) -> None:
    profile, where, training = job
    choice = data.draw(jobs.choices(profile, where))
    try:
        forecast(profile, where, training, choice)
    except DoesNotFit as failure:
        device = failure.device
    else:
        return
    if device is None:
        assert choice.below
        assert not fits(profile, replace(where, memory=1 << 62), training, choice), "only more room below helps"
        return
    assert device > where.memory
    assert fits(profile, replace(where, memory=device), training, choice)
    for less in (1, page_of(where)):
        assert not fits(profile, replace(where, memory=max(where.memory, device - less)), training, choice)


@given(jobs.jobs(), st.data())
def test_the_room_below_that_would_do_is_the_smallest(job: Job, data: st.DataObject) -> None:
    profile, where, training = job
    choice = data.draw(jobs.choices(profile, where))
    try:
        forecast(profile, where, training, choice)
    except DoesNotFit as failure:
        below = failure.below
    else:
        return
    if below is None:
        assert not fits(profile, replace(where, host=1 << 40, up=1.0, down=1.0), training, choice)
        return
    for more, enough in ((below, True), (below - 1, False)):
        host = replace(where, host=where.host + more * where.devices, up=1.0, down=1.0)
        drives = replace(where, nvme=where.nvme + more * where.devices, read=1.0, write=1.0)
        assert fits(profile, host, training, choice) == enough
        assert fits(profile, drives, training, choice) == enough


def test_a_larger_device_has_larger_pages_which_need_more_room() -> None:
    profile = stack([10_000_000] * 2, 1000)
    where = machine(4 * MIB, host=1 << 30)
    with pytest.raises(DoesNotFit) as caught:
        forecast(profile, where, TRAINING, kept(profile))
    device = caught.value.device
    assert device is not None
    there = replace(where, memory=device)
    assert device == caught.value.needs.pinned + 3 * 20_000_000 + 12 * page_of(there)
    assert page_of(there) > page_of(where)


def test_state_has_room_in_all_tiers_together() -> None:
    """But what passes has room of its own. A device that holds everything needs no tier."""
    enough = footprint(MODEL, TRAINING, kept(MODEL), machine(), spills=False).total
    device = enough - 1
    needs = footprint(MODEL, TRAINING, kept(MODEL), machine(device), spills=True)
    with pytest.raises(DoesNotFit) as caught:
        forecast(MODEL, machine(device, host=1000), TRAINING, kept(MODEL))
    stuck = max(0, needs.state - (device - needs.least))
    assert caught.value.below == needs.parameters + needs.gradients + stuck - 1000
    assert caught.value.below < needs.spillable - 1000
    assert forecast(MODEL, machine(device, host=1000 + caught.value.below), TRAINING, kept(MODEL)).spilled.total
    assert not forecast(MODEL, machine(enough, host=1000), TRAINING, kept(MODEL)).spilled.total


def test_no_device_is_large_enough_where_offloaded_activations_have_no_room() -> None:
    choice = replace(kept(MODEL), ways=(Way.OFFLOAD,) * 8, below=True)
    needs = footprint(MODEL, TRAINING, choice, machine(1 << 40), spills=True)
    with pytest.raises(DoesNotFit) as caught:
        forecast(MODEL, machine(1 << 40, host=needs.spillable + needs.ends + 7000), TRAINING, choice)
    assert (caught.value.device, caught.value.below) == (None, 1000)
    assert str(caught.value) == "needs 0.98 KiB more below it"
