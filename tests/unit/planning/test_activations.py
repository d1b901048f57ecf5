"""Which activations stay, within any room."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.planning.activations import ActivationPlan, Saves, Way, follow_wishes, plan_activations

sizes = st.integers(0, 1000)
turns = st.sampled_from([True, True, True, False])


@st.composite
def saves(draw: st.DrawFn) -> Saves:
    nbytes = draw(sizes)
    seconds = draw(st.floats(0, 100))
    made, again, at_once, in_turn = draw(st.integers(0, nbytes)), draw(st.booleans()), draw(st.booleans()), draw(turns)
    return Saves(nbytes, made, seconds, again, at_once, in_turn)


units = st.lists(saves(), max_size=12)
rooms = st.integers(0, 5000)
bandwidths = st.one_of(st.floats(0.1, 1000), st.just(math.inf))


def kept_bytes(chosen: list[Saves], plan: ActivationPlan) -> int:
    return sum(unit.nbytes for unit, way in zip(chosen, plan.ways, strict=True) if way is Way.KEEP)


@given(units, rooms, bandwidths)
def test_no_more_is_needed_than_there_is_room(chosen: list[Saves], room: int, bandwidth: float) -> None:
    plan = plan_activations(chosen, room, bandwidth)
    assert plan.kept == kept_bytes(chosen, plan)
    assert 0 <= plan.needed <= room


@given(units, rooms, bandwidths)
def test_all_is_kept_if_and_only_if_it_fits(chosen: list[Saves], room: int, bandwidth: float) -> None:
    plan = plan_activations(chosen, room, bandwidth)
    fits = sum(unit.nbytes for unit in chosen) <= room
    assert all(way is Way.KEEP for way in plan.ways) == fits


@given(units, rooms, rooms, bandwidths)
def test_more_room_keeps_no_less(chosen: list[Saves], room: int, other: int, bandwidth: float) -> None:
    less, more = sorted((room, other))
    assert plan_activations(chosen, less, bandwidth).kept <= plan_activations(chosen, more, bandwidth).kept


@given(units, rooms, bandwidths)
def test_only_what_can_be_is_recomputed(chosen: list[Saves], room: int, bandwidth: float) -> None:
    plan = plan_activations(chosen, room, bandwidth)
    for unit, way in zip(chosen, plan.ways, strict=True):
        assert way is not Way.RECOMPUTE or unit.recomputable
        assert unit.nbytes or way is Way.KEEP


@given(st.lists(st.tuples(saves(), st.sampled_from(Way)), max_size=12), rooms, rooms)
def test_wishes_are_followed_as_far_as_can_be(wished: list[tuple[Saves, Way]], room: int, below: int) -> None:
    chosen, wishes = [unit for unit, _ in wished], [wish for _, wish in wished]
    plan = follow_wishes(chosen, wishes, room, below)
    again = max((unit.nbytes for unit, way in zip(chosen, plan.ways, strict=True) if way is Way.RECOMPUTE), default=0)
    stay = 0
    for (unit, wish), way in zip(reversed(wished), reversed(plan.ways), strict=True):
        if not unit.nbytes:
            assert way is Way.KEEP
        elif wish is Way.OFFLOAD or (wish is Way.RECOMPUTE and unit.recomputable):
            assert way is wish
        else:
            assert way is Way.KEEP or (way is Way.OFFLOAD and stay + unit.nbytes > room - again)
            stay += unit.nbytes * (way is Way.KEEP)
    assert plan.kept == kept_bytes(chosen, plan)
    assert plan.needed <= max(room, again) + plan.crowded
    leaving = sum(
        unit.nbytes - unit.made * (way is Way.RECOMPUTE)
        for unit, way in zip(chosen, plan.ways, strict=True)
        if way is not Way.KEEP
    )
    assert plan.crowded == max(0, leaving - below)


@given(units, rooms, bandwidths)
def test_what_brings_activations_back_ahead_has_room_for_two_units(
    chosen: list[Saves], room: int, bandwidth: float
) -> None:
    plan = plan_activations(chosen, room, bandwidth)
    chosen_ways = list(zip(chosen, plan.ways, strict=True))
    moved = [unit.nbytes if way is not Way.KEEP and unit.at_once else 0 for unit, way in chosen_ways]
    pairs = [one + other for one, other in pairwise(moved)]
    assert plan.needed >= (max([*pairs, *moved], default=0) if plan.ahead else 0)


BLOCK = Saves(100, 80, seconds=1.0, recomputable=True)


def test_the_last_units_of_the_forward_stay() -> None:
    plan = plan_activations([BLOCK] * 8, 500, bandwidth=1000.0)
    assert plan.ways == (Way.OFFLOAD,) * 6 + (Way.KEEP,) * 2
    assert (plan.kept, plan.passing, plan.ahead) == (200, 0, True), "what comes takes the room of what stayed"


def test_what_does_not_go_in_turn_is_there_beside_all_that_stays() -> None:
    plan = plan_activations([BLOCK] * 7 + [replace(BLOCK, in_turn=False)], 500, bandwidth=1000.0)
    assert (plan.kept, plan.passing, plan.ahead) == (200, 200, True)


@pytest.mark.parametrize(
    ("stays", "room", "followed"),
    [
        ((0, 1), 200, "okr"),  # the first is there while the third is made again
        ((0, 1), 299, "okr"),
        ((0, 1), 300, "kkr"),
        ((1, 2), 200, "rkk"),
        ((1, 2), 199, "rok"),
    ],
)
def test_what_stays_has_room_beside_what_is_made_again_meanwhile(
    stays: tuple[int, ...], room: int, followed: str
) -> None:
    wishes = [Way.KEEP if unit in stays else Way.RECOMPUTE for unit in range(3)]
    plan = follow_wishes([BLOCK] * 3, wishes, room)
    assert "".join(way.value[0] for way in plan.ways) == followed
    assert plan.needed <= room


@pytest.mark.parametrize(
    ("bandwidth", "way"),
    [(161.0, Way.OFFLOAD), (159.0, Way.RECOMPUTE)],  # 80 bytes there and back
)
def test_whichever_is_quicker(bandwidth: float, way: Way) -> None:
    assert plan_activations([BLOCK] * 8, 300, bandwidth).ways[0] is way
    assert plan_activations([replace(BLOCK, recomputable=False)] * 8, 300, bandwidth).ways[0] is Way.OFFLOAD


def test_nothing_is_made_again_that_has_no_room_then() -> None:
    assert plan_activations([BLOCK] * 8, 198, bandwidth=1.0).ways == (Way.OFFLOAD,) * 8


@given(units, rooms, bandwidths, rooms)
def test_what_has_no_room_below_stays(chosen: list[Saves], room: int, bandwidth: float, below: int) -> None:
    plan = plan_activations(chosen, room, bandwidth, below=below)
    leaving = sum(
        unit.nbytes - (unit.made if way is Way.RECOMPUTE else 0)
        for unit, way in zip(chosen, plan.ways, strict=True)
        if way is not Way.KEEP
    )
    assert leaving - plan.crowded <= below
    assert plan.needed <= room or sum(unit.nbytes for unit in chosen) > room + below
