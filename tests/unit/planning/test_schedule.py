"""Computation, collectives, transfers and bytes on one axis."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.forecast import DoesNotFit, forecast
from ciuic_dist.planning.lanes import lanes, stretches
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.schedule import ACTIVATIONS, BUFFERS, schedule
from ciuic_dist.planning.spilling import with_transfers
from ciuic_dist.planning.trace import Kind
from ciuic_dist.planning.training import Training
from tests.unit.planning import jobs
from tests.unit.planning.jobs import MIB, kept, machine, stack

MODEL = stack([1_000_000] * 8, 1000, seconds=1e-3)
NAMES = ["root", *(f"block {index}" for index in range(8)), "root"]
PASSES = [*(f"forward {name}" for name in NAMES), *(f"backward {name}" for name in reversed(NAMES))]

Job = tuple[Profile, Machine, Training]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_what_fits_is_computation_and_collectives(accumulation: int) -> None:
    where, training, choice = (
        machine(1000 * MIB, devices=2),
        Training(2 * accumulation, 8),
        kept(MODEL, 3, accumulation),
    )
    drawn = schedule(MODEL, where, training, choice)
    computed = lanes(MODEL, where, training, choice)
    assert (drawn.timeline.transfers, drawn.missing) == ((), "")
    assert [op.name for op in drawn.timeline.ops] == [*PASSES, "update"]
    last = stretches(MODEL, where, training, choice)[-1]
    for spans, sent in (
        (drawn.gathers, [s.gather for s in last if s.gather]),
        (drawn.reductions, [s.reduce for s in last if s.reduce]),
    ):
        assert [s.start for s in spans] == pytest.approx([start for start, _ in sent])
        assert [s.end for s in spans] == pytest.approx([end for _, end in sent])
    if accumulation == 1:
        assert drawn.timeline.seconds == pytest.approx(computed.seconds)
    assert max(drawn.timeline.device.total) == forecast(MODEL, where, training, choice).device
    assert set(drawn.timeline.below.total) == {0}


@pytest.mark.parametrize("accumulation", [1, 2, 7])
def test_what_spills_is_played_up_to_the_last_update(accumulation: int) -> None:
    where, training = machine(16 * MIB, host=1 << 30), Training(accumulation, 8)
    choice = kept(MODEL, accumulation=accumulation)
    drawn = schedule(MODEL, where, training, choice)
    assert drawn.missing == ""
    names = [op.name for op in drawn.timeline.ops]
    assert names[: len(PASSES)] == PASSES
    assert set(names[len(PASSES) :]) == {f"update {unit.name}" for unit in MODEL.units}
    expected = forecast(MODEL, where, training, choice)
    played = with_transfers(MODEL, where, training, choice, expected)
    up = sum(t.nbytes for t in drawn.timeline.transfers if t.up)
    if accumulation == 1:
        assert drawn.timeline.seconds == pytest.approx(played.seconds)
        assert up == pytest.approx(played.up, rel=0.05)
    else:
        assert drawn.timeline.seconds < played.seconds
        assert up < played.up
    assert 0.9 * where.memory < max(drawn.timeline.device.total) <= where.memory
    assert max(drawn.timeline.below.total) <= expected.host


def test_collectives_stay_with_their_passes() -> None:
    where = replace(machine(21 * MIB, devices=2, host=1 << 30), up=1e8, down=1e8)
    training, choice = Training(4, 8), kept(MODEL, 3, 2)
    drawn = schedule(MODEL, where, training, choice)
    assert drawn.timeline.transfers
    passes = {op.name: op for op in drawn.timeline.ops}
    assert {span.name for span in drawn.reductions} == {name for name in PASSES if name.startswith("backward")}
    for span in drawn.reductions:
        assert passes[span.name].start <= span.start
    for span in drawn.gathers:
        assert span.end <= max(op.start for op in drawn.timeline.ops if op.name == span.name) + 1e-9
    assert drawn.reductions[-1].end == pytest.approx(passes["backward root"].end)


def test_activations_come_and_go() -> None:
    where, training = machine(1000 * MIB, host=1 << 30), Training(1, 8)
    choice = replace(kept(MODEL), ways=(Way.OFFLOAD,) * 8, below=True)
    drawn = schedule(MODEL, where, training, choice)
    assert drawn.missing == "transfers of activations"
    assert max(drawn.timeline.below.nbytes[ACTIVATIONS]) == 8000
    for levels in (drawn.timeline.device, drawn.timeline.below):
        there = levels.nbytes[ACTIVATIONS]
        assert there[-1] == 0 < max(there)
    first = drawn.timeline.ops[PASSES.index("backward block 0")]
    assert drawn.timeline.below.cut(first.start, first.end).nbytes[ACTIVATIONS] == (1000,)


def test_without_room_to_play_it_nothing_moves() -> None:
    """A weight of 4 million bytes and its gradient of 8 fit, but not with pages as large as those played."""
    profile = stack([2_000_000] * 8, 1000, seconds=1e-3)
    where, training, choice = machine(13 * MIB, host=1 << 30), Training(1, 8), kept(profile)
    drawn = schedule(profile, where, training, choice)
    spilled = forecast(profile, where, training, choice).spilled
    assert (drawn.timeline.transfers, drawn.missing) == ((), "transfers")
    assert drawn.timeline.below.nbytes[Kind.STATE] == pytest.approx([spilled.state] * len(drawn.timeline.below.moments))


@settings(max_examples=60)
@given(jobs.jobs(), st.data())
def test_all_of_it_lies_within_the_time_and_the_memory(job: Job, data: st.DataObject) -> None:
    profile, where, training = job
    choice = data.draw(jobs.choices(profile, where))
    try:
        drawn = schedule(profile, where, training, choice)
    except DoesNotFit:
        assume(False)
    end = drawn.timeline.seconds
    for spans in (drawn.timeline.ops, (*drawn.gathers, *drawn.reductions), drawn.timeline.transfers):
        assert all(0 <= s.start <= s.end <= end * (1 + 1e-9) for s in spans)
    alone = drawn.reductions if choice.group is None else ()  # what groups add up passes while the next is reduced
    for collectives in (drawn.gathers, alone):
        assert all(before.end <= after.start + 1e-9 * end for before, after in pairwise(collectives))
    assert max(drawn.timeline.device.total) <= where.memory
    assert set(drawn.timeline.device.nbytes) == {*Kind, ACTIVATIONS, BUFFERS}
