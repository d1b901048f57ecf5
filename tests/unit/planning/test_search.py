"""The search, over whatever models and machines."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.choices import Limits, choices
from ciuic_dist.planning.footprint import footprint
from ciuic_dist.planning.forecast import DoesNotFit, Forecast, forecast
from ciuic_dist.planning.look import Found, look
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.search import in_memory_seconds, search
from ciuic_dist.planning.training import Choice, Training
from ciuic_dist.planning.ways import mixed, recomputed_in_part
from tests.unit.planning import jobs
from tests.unit.planning.jobs import KIB, MIB, kept, machine, per_sequence, stack

Job = tuple[Profile, Machine, Training]
MODEL = stack([400_000] * 4, 10_000, seconds=1e-3)


def found(job: Job) -> Found | None:
    profile, where, training = job
    try:
        return search(per_sequence(profile), where, training)
    except DoesNotFit:
        return None


@settings(max_examples=30)
@given(jobs.jobs())
def test_no_tier_is_overfilled(job: Job) -> None:
    best, where = found(job), job[1]
    if best is not None:
        assert best.forecast.device <= where.memory
        assert best.forecast.host <= where.node_host
        assert best.forecast.nvme <= where.node_nvme


@settings(max_examples=20)
@given(jobs.jobs())
def test_it_finds_the_same_again(job: Job) -> None:
    assert found(job) == found(job)


@settings(max_examples=20)
@given(jobs.jobs())
def test_none_that_fits_is_quicker(job: Job) -> None:
    """A forecast without its transfers played is the least that a choice takes."""
    best, (profile, where, training) = found(job), job
    if best is None or best.forecast.spilled.total:
        return
    profile_of = per_sequence(profile)
    for choice in choices(profile_of, where, training, Limits()):
        try:
            other = forecast(profile_of(choice.micro_batch), where, training, choice)
        except DoesNotFit:
            continue
        assert best.forecast.seconds <= other.seconds * 1.00501 or other.spilled.total


@settings(max_examples=20)
@given(jobs.jobs(), st.sampled_from([1.1, 2.0, 16.0]))
def test_more_memory_is_never_slower(job: Job, times: float) -> None:
    """But for what counts as equal. Pages that double take a thirty-second part of the device."""
    profile, where, training = job
    less = found(job)
    if less is not None:
        more = found((profile, replace(where, memory=int(where.memory * times) + 1), training))
        assert more is not None
        assert more.forecast.seconds <= less.forecast.seconds * 1.00501


def test_a_slow_network_makes_groups_of_nodes_where_they_fit() -> None:
    """What several micro-batches gather stays in a node then; one alone would send its gradients twice for that."""
    where = replace(machine(nodes=4, devices=4, link=1e9), network=1e7)
    training = Training(64, 8)
    limits = Limits(stage=3, micro_batch=1)
    assert search(per_sequence(MODEL), where, training, limits).choice.group == 4
    assert search(per_sequence(MODEL), where, Training(16, 8), limits).choice.group is None
    devices = [forecast(MODEL, where, training, kept(MODEL, 3, 4, group=group)).device for group in (4, 8, None)]
    assert devices == sorted(devices, reverse=True)
    assert devices[0] > devices[-1]


def test_cores_of_several_nodes_share_within_each_where_they_can() -> None:
    where = replace(machine(nodes=2, devices=2, link=1e9), network=1e7, shared=True)
    found = search(per_sequence(MODEL), where, Training(64, 8), Limits(stage=3, micro_batch=1))
    assert found.choice.group == 2
    assert found.forecast.sent > 0, "of gradients alone, between the groups"


@settings(max_examples=30)
@given(jobs.jobs())
def test_what_would_do_does(job: Job) -> None:
    profile, where, training = job
    try:
        search(per_sequence(profile), where, training)
    except DoesNotFit as failure:
        device, below = failure.device, failure.below
    else:
        return
    assert device is not None, "without activations below it fits a device that is large enough"
    assert device > where.memory
    assert found((profile, replace(where, memory=device), training)) is not None
    if below is not None:
        there = replace(where, host=where.host + below * where.devices, up=where.up or 1e6, down=where.down or 1e6)
        assert found((profile, there, training)) is not None


def test_what_fits_nowhere_says_so_though_the_root_exceeds_what_passes() -> None:
    """Its weight and gradients, as a whole, have no room beside what can't leave."""
    profile = stack([100], 500_000)
    training = Training(1, 8)
    with pytest.raises(DoesNotFit) as caught:
        search(per_sequence(profile), machine(1 * MIB, host=1000 * MIB), training)
    device = caught.value.device
    assert device is not None
    best = search(per_sequence(profile), machine(device, host=1000 * MIB), training).forecast
    moving = best.up / 1e9 + best.down / 1e9
    assert best.seconds == pytest.approx(best.unspilled + moving), "nothing hides"


def test_the_quickest_is_chosen_and_of_equals_the_one_that_moves_least() -> None:
    training = Training(2, 8)
    best = search(per_sequence(MODEL), machine(1000 * MIB, devices=2, link=1e15), training)
    assert best.forecast.spilled.total == 0
    assert best.choice.stage == 2, "the update of half of the parameters each, and not all gradients at a time"
    first, second = (
        forecast(MODEL, machine(1000 * MIB, devices=2, link=1e15), training, kept(MODEL, n)) for n in (1, 2)
    )
    assert first.sent == second.sent
    assert first.device - second.device == 400_000 * 4, "gradients of three of four blocks"
    assert best.choice.ways == (Way.KEEP,) * 4


@pytest.mark.parametrize(("shared", "most"), [(False, 3), (True, 0)])
def test_units_stay_gathered_only_where_they_are_gathered(shared: bool, most: int) -> None:
    where = replace(machine(1000 * MIB, devices=2, host=1000 * MIB), shared=shared)
    tried = list(choices(per_sequence(MODEL), where, Training(2, 8), Limits(stage=3)))
    assert max(choice.gathered for choice in tried) == most
    assert not any(choice.gathered for choice in tried if choice.below)
    assert any(choice.below for choice in tried)


@settings(max_examples=30)
@given(jobs.jobs())
def test_no_other_number_of_gathered_units_is_quicker_and_fits(job: Job) -> None:
    """Nor sends less, where it is as quick."""
    best, (profile, where, training) = found(job), job
    if best is None or best.forecast.spills:
        return
    for gathered in range(profile.root if best.choice.stage == 3 else 0):
        other = replace(best.choice, gathered=gathered)
        with suppress(DoesNotFit):
            there = forecast(per_sequence(profile)(other.micro_batch), where, training, other)
            assert there.spills or best.forecast.seconds <= there.seconds * 1.00501


@pytest.mark.parametrize("most", range(4))
def test_as_many_units_stay_gathered_as_fit(most: int) -> None:
    where, training, limits = machine(devices=2, link=1e7), Training(2, 8), Limits(stage=3, recompute=False)
    where = replace(where, memory=forecast(MODEL, where, training, kept(MODEL, 3, gathered=most)).device)
    assert search(per_sequence(MODEL), where, training, limits).choice.gathered == most


LARGE = stack([1000] * 6, 1000, seconds=1e-3, bytes_each=1_000_000)
"""What its blocks save is more than all else."""


@pytest.mark.parametrize("recomputed", range(2, 6))
def test_alone_no_more_is_recomputed_than_must_be(recomputed: int) -> None:
    """A budget for one block's 800 thousand bytes more spares recomputing it; its input stays anyway."""
    training, where, limits = Training(1, 8), machine(1000 * MIB), Limits(stage=0)
    all_of_them = replace(kept(LARGE), ways=(Way.RECOMPUTE,) * 6)
    enough = footprint(LARGE, training, all_of_them, where, spills=True).total + (6 - recomputed) * 800_000
    more, less = (search(per_sequence(LARGE), replace(where, memory=enough - n), training, limits) for n in (0, 1))
    assert more.choice.ways == (Way.RECOMPUTE,) * recomputed + (Way.KEEP,) * (6 - recomputed)
    assert less.choice.ways == (Way.RECOMPUTE,) * (recomputed + 1) + (Way.KEEP,) * (5 - recomputed)
    assert more.forecast.spills, "it takes a budget that is divided"
    assert more.forecast.spilled.total == 0
    assert more.forecast.device <= enough
    assert less.forecast.seconds - more.forecast.seconds == pytest.approx(1e-3)


def test_what_takes_a_budget_has_to_fit_it_and_leaves_no_unit_gathered() -> None:
    """On one device gradients of the root wait in fp32 within a budget, and are bf16 without."""
    training, profile = Training(1, 8), stack([1000] * 6, 400_000, bytes_each=1_000_000)
    choice = replace(kept(profile), ways=(Way.RECOMPUTE,) * 3 + (Way.KEEP,) * 3)
    free, within = (footprint(profile, training, choice, machine(), spills=spills).total for spills in (False, True))
    assert within - free == 400_000 * 2
    assert look(choice, per_sequence(profile), machine(within - 1), training) is None
    there = look(choice, per_sequence(profile), machine(within), training)
    assert there is not None
    assert (there.forecast.device, there.forecast.spills) == (within, True)
    links = machine(6 * MIB, devices=2)
    tried = [c for c in choices(per_sequence(LARGE), links, Training(2, 8), Limits(stage=3)) if c.divided]
    assert [c.gathered for c in tried] == [0]


@settings(max_examples=50)
@given(jobs.jobs(), st.integers(0, 3))
def test_units_differ_only_as_the_engine_would_have_it(job: Job, stage: int) -> None:
    """With nothing below it divides its room by itself; else it follows, and the last are kept."""
    profile, where, training = job
    for choice in choices(per_sequence(profile), where, training, Limits(stage=stage)):
        if len(set(choice.ways)) < 2:
            continue
        there = per_sequence(profile)(choice.micro_batch)
        if choice.below:
            again = mixed(profile.root, choice.ways.count(Way.KEEP), choice.ways.count(Way.OFFLOAD))
        else:
            plain = replace(choice, ways=(Way.RECOMPUTE,) * profile.root)
            again = recomputed_in_part(there, where, training, plain) or ()
        assert choice.ways == again
        assert not choice.below or where.host or where.nvme
        assert not choice.gathered


@settings(max_examples=30)
@given(jobs.jobs())
def test_no_unit_more_or_less_is_quicker(job: Job) -> None:
    """Of those that keep their activations, and of those that offload them."""
    best, (profile, where, training) = found(job), job
    if best is None or not best.choice.below:
        return
    units, ways = profile.root, best.choice.ways
    kept, offloaded = ways.count(Way.KEEP), ways.count(Way.OFFLOAD)
    for stay, leave in ((kept + 1, offloaded), (kept - 1, offloaded), (kept, offloaded + 1), (kept, offloaded - 1)):
        if 0 <= stay < units and 0 <= leave <= units - stay:
            other = replace(best.choice, ways=mixed(units, stay, leave))
            there = look(other, per_sequence(profile), where, training)
            assert there is None or there.forecast.seconds >= best.forecast.seconds * 0.999


def test_no_unit_stays_gathered_where_something_is_spilled() -> None:
    profile_of, training, limits = per_sequence(MODEL), Training(2, 8), Limits(stage=3, way=Way.KEEP)
    roomy = machine(1000 * MIB, devices=2, link=1e7, host=1000 * MIB)
    assert search(profile_of, roomy, training, limits).choice.gathered == 3, "which saves gathering them again"
    tight = replace(roomy, memory=16 * MIB, up=1e9, down=1e9)
    found = search(profile_of, tight, training, limits)
    assert found.forecast.spills
    assert found.choice.gathered == 0
    staying = forecast(MODEL, tight, training, replace(found.choice, gathered=3))
    assert staying.seconds < found.forecast.seconds, "it would be chosen if it could be"


def test_little_memory_makes_it_spill_and_it_is_slower() -> None:
    training, profile_of = Training(1, 8), per_sequence(MODEL)
    tight = search(profile_of, machine(12 * MIB, host=1000 * MIB, link=1e8), training)
    assert tight.forecast.spilled.state > 0
    assert tight.forecast.seconds > in_memory_seconds(profile_of, machine(12 * MIB), training)
    assert tight.forecast.seconds >= tight.forecast.bound


def test_the_most_promising_of_those_that_spill_are_played(monkeypatch: pytest.MonkeyPatch) -> None:
    training, profile_of = Training(16, 8), per_sequence(MODEL)
    where = machine(8 * MIB, devices=2, host=1000 * MIB, link=1e8)
    played: list[float] = []

    def play(_profile: Profile, _where: Machine, _training: Training, _choice: Choice, found: Forecast) -> Forecast:
        played.append(found.seconds)
        return replace(found, seconds=1e6 + found.seconds)

    for part in ("search", "look"):
        monkeypatch.setattr(f"ciuic_dist.planning.{part}.with_transfers", play)
    best = search(profile_of, where, training)
    found = []
    for choice in choices(profile_of, where, training, Limits()):
        with suppress(DoesNotFit):
            found.append(forecast(profile_of(choice.micro_batch), where, training, choice).seconds)
    assert len(found) > 24
    assert played[:24] == sorted(found)[:24], "and what is near the best of them"
    assert best.forecast.seconds == pytest.approx(1e6 + played[0], rel=0.005)


def test_limits_are_kept() -> None:
    where, training, profile_of = machine(1000 * MIB, devices=2, host=1000 * MIB), Training(8, 8), per_sequence(MODEL)
    for stage in range(4):
        assert search(profile_of, where, training, Limits(stage=stage)).choice.stage == stage
    for micro_batch in (1, 2, 4):
        choice = search(profile_of, where, training, Limits(micro_batch=micro_batch)).choice
        assert (choice.micro_batch, choice.accumulation) == (micro_batch, 4 // micro_batch)
    for way in (Way.OFFLOAD, Way.RECOMPUTE):
        choice = search(profile_of, where, training, Limits(way=way)).choice
        assert (choice.ways, choice.below) == ((way,) * 4, True)
    choice = search(profile_of, where, training, Limits(recompute=True)).choice
    assert (choice.ways, choice.below) == ((Way.RECOMPUTE,) * 4, False)


def test_all_that_there_is_is_considered() -> None:
    where, training, profile_of = machine(1000 * MIB, devices=2), Training(8, 8), per_sequence(MODEL)
    tried = list(choices(profile_of, where, training, Limits()))
    assert len(tried) == 3 * 2 * (3 + 2), "micro-batches; kept or recomputed; stages, the last with units gathered"


@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
def test_nothing_is_considered_twice(blocks: int) -> None:
    where, profile_of = machine(1000 * MIB, devices=2, host=1000 * MIB), per_sequence(stack([400_000] * blocks, 10_000))
    tried = list(choices(profile_of, where, Training(8, 8), Limits()))
    assert len(tried) == len(set(tried))
    assert all(set(choice.ways) != {Way.KEEP} for choice in tried if choice.below), "that would be one that stays"


@pytest.mark.parametrize("sequences", [3, 9, 1])
def test_a_batch_that_can_not_be_divided_is_refused(sequences: int) -> None:
    with pytest.raises(ValueError, match=f"{sequences} sequences can't be divided among 2 ranks"):
        search(per_sequence(MODEL), machine(devices=2), Training(sequences, 8))


@pytest.mark.parametrize(
    "limits", [Limits(micro_batch=3), Limits(way=Way.OFFLOAD), Limits(recompute=True, way=Way.OFFLOAD)]
)
def test_limits_that_leave_nothing_are_refused(limits: Limits) -> None:
    with pytest.raises(ValueError, match="leave nothing to choose from"):
        search(per_sequence(MODEL), machine(), Training(8, 8), limits)


def test_one_page_of_room_decides() -> None:
    """The smallest device is found by the search as by the forecast."""
    training, where = Training(1, 8), machine(100 * KIB)
    with pytest.raises(DoesNotFit) as caught:
        search(per_sequence(MODEL), where, training, Limits(way=Way.KEEP, recompute=False))
    with pytest.raises(DoesNotFit) as alone:
        forecast(MODEL, where, training, kept(MODEL))
    assert caught.value.device == alone.value.device
