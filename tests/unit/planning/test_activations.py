"""Which activations stay, within any room."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.planning.activations import ActivationPlan, Saves, Way, plan_activations

sizes = st.integers(0, 1000)


@st.composite
def saves(draw: st.DrawFn) -> Saves:
    nbytes = draw(sizes)
    seconds = draw(st.floats(0, 100))
    return Saves(nbytes, draw(st.integers(0, nbytes)), seconds, draw(st.booleans()), draw(st.booleans()))


units = st.lists(saves(), max_size=12)
rooms = st.integers(0, 5000)
bandwidths = st.one_of(st.floats(0.1, 1000), st.just(math.inf))
forces = st.sampled_from([None, Way.OFFLOAD, Way.RECOMPUTE])


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


@given(units, rooms, bandwidths, forces)
def test_only_what_can_be_is_recomputed(chosen: list[Saves], room: int, bandwidth: float, forced: Way | None) -> None:
    plan = plan_activations(chosen, room, bandwidth, forced)
    for unit, way in zip(chosen, plan.ways, strict=True):
        assert way is not Way.RECOMPUTE or unit.recomputable
        assert unit.nbytes or way is Way.KEEP
        if unit.nbytes and forced is Way.OFFLOAD:
            assert way is Way.OFFLOAD
        if unit.nbytes and forced is Way.RECOMPUTE and unit.recomputable:
            assert way is Way.RECOMPUTE


@given(units, rooms, bandwidths)
def test_what_brings_activations_back_ahead_has_room_for_two_units(
    chosen: list[Saves], room: int, bandwidth: float
) -> None:
    plan = plan_activations(chosen, room, bandwidth)
    moved = [unit.nbytes for unit, way in zip(chosen, plan.ways, strict=True) if way is not Way.KEEP and unit.at_once]
    assert plan.passing >= (2 * max(moved) if plan.ahead else 0)


BLOCK = Saves(100, 80, seconds=1.0, recomputable=True)


def test_the_last_units_of_the_forward_stay() -> None:
    plan = plan_activations([BLOCK] * 8, 500, bandwidth=1000.0)
    assert plan.ways == (Way.OFFLOAD,) * 6 + (Way.KEEP,) * 2
    assert (plan.kept, plan.passing, plan.ahead) == (200, 200, True)


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
