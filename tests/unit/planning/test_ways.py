"""What units' activations have for ways, side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.footprint import footprint
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Choice, Training
from ciuic_dist.planning.ways import mixed, recomputed_in_part
from tests.unit.planning.jobs import MIB, kept, machine, stack

MODEL = stack([100_000] * 6, 1000, seconds=1.0, bytes_each=1_000_000)
"""Six blocks that save a million bytes each, of which 800 thousand can be made again."""
TRAINING = Training(1, 8)
RECOMPUTING = replace(kept(MODEL), ways=(Way.RECOMPUTE,) * 6)


def with_room(nbytes: int, choice: Choice, link: float = 1e9, profile: Profile = MODEL) -> Machine:
    """So many bytes of the device beside what ``choice`` takes at the least; its pages grow with it."""
    where = machine(1 * MIB, host=1000 * MIB, link=link)
    for _ in range(9):
        needs = footprint(profile, TRAINING, choice, where, spills=True)
        where = replace(where, memory=nbytes + (needs.least if choice.below else needs.total))
    return where


@given(st.data())
def test_the_last_keep_theirs_and_offloads_are_spread_evenly(data: st.DataObject) -> None:
    units = data.draw(st.integers(1, 50))
    kept = data.draw(st.integers(0, units))
    offloaded = data.draw(st.integers(0, units - kept))
    ways = mixed(units, kept, offloaded)
    assert [ways.count(way) for way in (Way.KEEP, Way.OFFLOAD)] == [kept, offloaded]
    assert len(ways) == units
    others = ways[: units - kept]
    assert Way.KEEP not in others
    for end in range(len(others)):
        assert abs(others[:end].count(Way.OFFLOAD) - end * offloaded / len(others)) < 1


@pytest.mark.parametrize(("room", "stay"), [(0, 0), (799_999, 0), (800_000, 1), (4_799_999, 5), (4_800_000, 6)])
def test_alone_all_of_the_room_is_for_the_last(room: int, stay: int) -> None:
    """Inputs stay anyway."""
    where = replace(with_room(room, RECOMPUTING), host=0)
    assert recomputed_in_part(MODEL, where, TRAINING, RECOMPUTING) == (Way.RECOMPUTE,) * (6 - stay) + (Way.KEEP,) * stay


def test_alone_nothing_is_divided_that_has_no_room_recomputed() -> None:
    assert recomputed_in_part(MODEL, with_room(-1, RECOMPUTING), TRAINING, RECOMPUTING) is None
