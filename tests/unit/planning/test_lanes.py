"""A step in time: what hides behind computing, and what is sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.lanes import lanes, least_seconds, stretches, update_seconds
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Training
from tests.unit.planning import jobs
from tests.unit.planning.jobs import kept, machine, stack

MODEL = stack([1_000_000] * 3, 0)
"""Blocks of one second forward and two backward, of two million bytes in bf16; 0.75 seconds of the root."""
ROOTED = stack([1_000_000] * 3, 400_000)
COMPUTING = 3 * 3 + 0.75
TRAINING = Training(8, 8)
SECOND = replace(machine(devices=2, link=1e6), bandwidth=math.inf)
"""Two devices that gather a block in one second, and copy in no time."""


@given(jobs.jobs(), st.data())
def test_with_infinitely_fast_links_only_computing_counts(
    job: tuple[Profile, Machine, Training], data: st.DataObject
) -> None:
    profile, where, training = job
    where = replace(where, peers=math.inf, network=math.inf, latency=0.0)
    played = lanes(profile, where, training, data.draw(jobs.choices(profile, where)))
    assert played.seconds == pytest.approx(played.computing)
    assert played.sending == 0


@given(jobs.jobs(), st.data())
def test_a_step_takes_no_less_than_either_lane_and_no_more_than_both(
    job: tuple[Profile, Machine, Training], data: st.DataObject
) -> None:
    profile, where, training = job
    played = lanes(profile, where, training, data.draw(jobs.choices(profile, where)))
    sides = (played.computing, played.sending + played.updating, played.adding)
    assert max(sides) * (1 - 1e-9) <= played.seconds <= sum(sides) * (1 + 1e-9)


@given(jobs.jobs(), st.data())
def test_no_step_is_quicker_than_its_passes_and_the_update(
    job: tuple[Profile, Machine, Training], data: st.DataObject
) -> None:
    profile, where, training = job
    choice = data.draw(jobs.choices(profile, where))
    least = least_seconds(profile, where, training, choice)
    assert least <= lanes(profile, where, training, choice).seconds * (1 + 1e-9)
    alone = replace(machine(), bandwidth=math.inf)
    choice = replace(choice, stage=0, gathered=0, group=None)
    assert lanes(profile, alone, training, choice).seconds == pytest.approx(
        least_seconds(profile, alone, training, choice)
    )


@given(jobs.jobs(), st.data())
def test_neither_room_nor_links_below_matter(job: tuple[Profile, Machine, Training], data: st.DataObject) -> None:
    profile, where, training = job
    choice = data.draw(jobs.choices(profile, where))
    other = replace(where, memory=1, host=1, up=1.0, down=1.0, nvme=1, read=1.0, write=1.0)
    assert lanes(profile, where, training, choice) == lanes(profile, other, training, choice)


def test_a_group_gathers_within_a_node_and_adds_up_its_shards_across() -> None:
    """A block is two million bytes, its gradients four: a second and two in a node, four of a device's part across."""
    two_nodes = replace(SECOND, nodes=2, network=1e6)
    played = lanes(MODEL, two_nodes, TRAINING, kept(MODEL, stage=3, group=2))
    assert played.sending == pytest.approx(2 * 3 * 1 + 3 * 2)
    assert played.adding == pytest.approx(3 * 4)
    assert played.sent == pytest.approx(2 * 3 * 1e6 + 3 * (2e6 + 2e6))
    together = lanes(MODEL, two_nodes, TRAINING, kept(MODEL, stage=3))
    assert together.sending == pytest.approx(2 * 3 * 1.5 + 3 * 3)
    assert together.sent == pytest.approx((2 * 3 * 2e6 + 3 * 4e6) * 3 / 4)


def test_a_gather_hides_behind_the_pass_before_and_a_reduction_behind_the_next() -> None:
    played = lanes(MODEL, SECOND, TRAINING, kept(MODEL, stage=3))
    [only] = stretches(MODEL, SECOND, TRAINING, kept(MODEL, stage=3))
    assert [(s.name, s.start, s.end, s.gather, s.reduce) for s in only] == [
        ("forward root", 0, 0, None, None),
        ("forward block 0", 1, 2, (0, 1), None),
        ("forward block 1", 2, 3, (1, 2), None),
        ("forward block 2", 3, 4, (2, 3), None),
        ("forward root", 4, 4.25, None, None),
        ("backward root", 4.25, 4.75, None, None),
        ("backward block 2", 5.25, 7.25, (4.25, 5.25), (7.25, 9.25)),
        ("backward block 1", 7.25, 9.25, (5.25, 6.25), (10.25, 12.25)),
        ("backward block 0", 10.25, 12.25, (9.25, 10.25), (12.25, 14.25)),
        ("backward root", 12.25, 12.25, None, None),
    ]
    assert played.seconds - played.updating == pytest.approx(14.25)
    assert played.computing - played.updating == pytest.approx(COMPUTING)
    assert played.sending == pytest.approx(5 + 1 + 3 * 2), "gradients are twice as large as weights"


def test_a_slow_link_bounds_the_step() -> None:
    played = lanes(MODEL, replace(SECOND, peers=1e3), TRAINING, kept(MODEL, stage=3))
    assert played.sending == pytest.approx(12_000)
    assert 12_000 <= played.seconds <= 12_000 + COMPUTING


@pytest.mark.parametrize("stage", range(4))
def test_micro_batches_add_up(stage: int) -> None:
    one, two, three, four = (lanes(ROOTED, SECOND, TRAINING, kept(ROOTED, stage, n)) for n in range(1, 5))
    shown = [stretches(ROOTED, SECOND, TRAINING, kept(ROOTED, stage, n)) for n in range(1, 4)]
    assert list(map(len, shown)) == [1, 2, 2]
    for played, many in ((one, 1), (two, 2), (three, 3)):
        assert played.computing - played.updating == pytest.approx(many * COMPUTING)
        assert played.updating == one.updating
    for what in ("seconds", "sending", "sent"):
        times = [getattr(played, what) for played in (two, three, four)]
        assert times[1] - times[0] == pytest.approx(times[2] - times[1]), what
    middle = three.seconds - two.seconds
    assert middle >= COMPUTING * (1 - 1e-9)
    if stage < 2:
        assert middle == pytest.approx(COMPUTING), "nothing is sent between the first and the last"


BLOCKS, ROOT = 6_000_000, 800_000
"""Bytes of weights; of gradients there are twice as many."""


@pytest.mark.parametrize("many", [1, 2, 3])
@pytest.mark.parametrize(
    ("stage", "gathered", "sent"),
    [
        (0, 0, lambda _: 2 * 2 * (BLOCKS + ROOT)),
        (1, 0, lambda _: (1 + 2) * (BLOCKS + ROOT)),
        (2, 0, lambda n: (1 + 2 * n) * (BLOCKS + ROOT)),
        (3, 0, lambda n: (2 * n + 2 * n) * BLOCKS + (n + 2 * n) * ROOT),
        (3, 1, lambda n: (2 * n + 2 * n) * BLOCKS * 2 / 3 + (1 + 2 * n) * BLOCKS / 3 + (n + 2 * n) * ROOT),
        (3, 3, lambda n: (1 + 2 * n) * BLOCKS + (n + 2 * n) * ROOT),
    ],
)
def test_what_is_sent(stage: int, gathered: int, sent: Callable[[int], float], many: int) -> None:
    for world in (2, 4):
        where = machine(devices=world)
        played = lanes(ROOTED, where, TRAINING, kept(ROOTED, stage, many, gathered))
        assert played.sent == pytest.approx(sent(many) * (world - 1) / world)


def test_a_unit_whose_backward_follows_its_forward_is_not_gathered_again() -> None:
    passes = tuple(p for p in MODEL.passes if p.unit != MODEL.root)
    job = replace(MODEL, passes=passes), SECOND, TRAINING, kept(MODEL, stage=3)
    played, [only] = lanes(*job), stretches(*job)
    assert [s.name for s in only if s.gather is None] == ["backward block 2"]
    assert played.sent == pytest.approx((3 + 2 + 3 * 2) * 2_000_000 / 2)


def test_one_device_and_devices_that_share_memory_send_nothing() -> None:
    for where in (machine(), replace(SECOND, shared=True)):
        played = lanes(ROOTED, where, TRAINING, kept(ROOTED, stage=3))
        assert (played.sent, played.sending) == (0, 0)


@pytest.mark.parametrize(("stage", "touched"), [(0, 2 + 1), (1, 1.5), (2, 1.5), (3, 1.5)])
def test_devices_that_share_memory_add_up_what_others_left(stage: int, touched: float) -> None:
    """At stage 0 each reads both mailboxes in full and writes its own; else half of that. They are as weights are.

    Before that each copies its gradients into its mailbox.
    """
    touched += 2
    where = replace(SECOND, shared=True, bandwidth=1e7)
    played = lanes(ROOTED, where, TRAINING, kept(ROOTED, stage))
    assert played.computing - played.updating == pytest.approx(COMPUTING + (BLOCKS + ROOT) * touched / 1e7)
    assert played.seconds == pytest.approx(played.computing)


@pytest.mark.parametrize(("stage", "times"), [(0, 2 + 3 + 3), (1, 2 + 3 + 3), (2, 3 * 2), (3, 3 * 2)])
def test_gradients_are_copied_or_added_to_those_of_micro_batches_before(stage: int, times: int) -> None:
    """To where they wait or are reduced from; those that are frozen aren't there."""
    units = (replace(ROOTED.units[0], frozen=1_000_000), *ROOTED.units[1:])
    where = replace(machine(devices=2, link=math.inf), bandwidth=1e7)
    played = lanes(replace(ROOTED, units=units), where, TRAINING, kept(ROOTED, stage, accumulation=3))
    expected = 3 * COMPUTING + times * (BLOCKS + ROOT - 2_000_000) / 1e7
    assert played.computing - played.updating == pytest.approx(expected)


@pytest.mark.parametrize(("update", "stage", "own"), [(0.0, 0, 3_400_000), (0.0, 2, 1_700_000), (1e6, 1, 1_700_000)])
def test_clipping_reads_gradients_twice_and_writes_them_once(update: float, stage: int, own: int) -> None:
    where = replace(SECOND, update=update, bandwidth=1e7)
    clipped, not_clipped = (
        update_seconds(ROOTED, where, replace(TRAINING, clips=clips), kept(ROOTED, stage)) for clips in (True, False)
    )
    assert clipped - not_clipped == pytest.approx(3 * own * 4 / 1e7)


def test_recomputing_runs_the_forward_again_and_offloading_does_not() -> None:
    once = lanes(MODEL, machine(), TRAINING, kept(MODEL)).computing
    for way, more in ((Way.RECOMPUTE, 2.0), (Way.OFFLOAD, 0.0)):
        choice = replace(kept(MODEL), ways=(way, Way.KEEP, way))
        assert lanes(MODEL, machine(), TRAINING, choice).computing - once == pytest.approx(more)


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 4), (3, 4)])
def test_the_update_is_bound_by_memory(stage: int, ranks: int) -> None:
    found = update_seconds(MODEL, machine(devices=4), Training(4, 8, clips=False), kept(MODEL, stage))
    assert found == pytest.approx(3e6 / ranks * (2 * 10 + 2 * 2 + 4) / 1e9)


def test_what_is_frozen_is_gathered_but_neither_reduced_nor_updated() -> None:
    block, *others = ROOTED.units
    profile = replace(ROOTED, units=(replace(block, frozen=block.parameters), *others))
    played = lanes(profile, machine(devices=2), replace(TRAINING, clips=False), kept(profile, stage=2))
    assert played.sent == pytest.approx((BLOCKS + ROOT + 2 * (BLOCKS * 2 / 3 + ROOT)) / 2)
    assert played.updating == pytest.approx((2_000_000 + 400_000) / 2 * (2 * 10 + 2 * 2 + 4) / 1e9)


def test_the_update_takes_as_long_as_was_measured() -> None:
    where = replace(machine(devices=4), update=5e5)
    assert update_seconds(MODEL, where, Training(4, 8, clips=False), kept(MODEL, 1)) == pytest.approx(3e6 / 4 / 5e5)
