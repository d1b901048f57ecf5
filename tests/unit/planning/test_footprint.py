"""Bytes of a device, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.footprint import footprint, levels, transient
from ciuic_dist.planning.pages import page_bytes
from ciuic_dist.planning.training import Choice, Training
from tests.unit.planning.jobs import KIB, MIB, kept, machine, stack

MODEL = stack([100, 300, 200], 50)
"""A block saves 1000 bytes, its input of 200 among them, and has 2000 at its peak; its backward 500 beyond what it
begins with."""
TOTAL, BLOCKS, ROOT = 650, 600, 50
FIVE = stack([100, 300, 200, 250, 150], 50)
ALL, LARGEST = 1050, 300
TWO_AND_ROOT, THREE_AND_ROOT = 2 * LARGEST + ROOT, 3 * LARGEST + ROOT
FROZEN = (100, 100, 0, 150, 0, 20)
PAGE = 256 * KIB


def ways(way: Way, *, below: bool = False) -> Choice:
    return Choice(0, 1, 1, (way,) * 3, below)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (
            ways(Way.KEEP),
            [
                (0, 0),
                (0, 2000),
                (1000, 3000),
                (2000, 4000),
                (3000, 3000),
                (3000, 3000),
                (3000, 3500),
                (2000, 2500),
                (1000, 1500),
                (0, 0),
            ],
        ),
        (  # inputs stay; a unit's forward runs again before its backward
            ways(Way.RECOMPUTE),
            [
                (0, 0),
                (0, 2000),
                (200, 2200),
                (400, 2400),
                (600, 600),
                (600, 600),
                (600, 2600),
                (400, 2400),
                (200, 2200),
                (0, 0),
            ],
        ),
        (
            ways(Way.OFFLOAD, below=True),
            [(0, 0), (0, 2000), (0, 2000), (0, 2000), (0, 0), (0, 0), (0, 2000), (0, 2000), (0, 2000), (0, 0)],
        ),
        (
            Choice(0, 1, 1, (Way.RECOMPUTE, Way.KEEP, Way.KEEP), below=True),
            [
                (0, 0),
                (0, 2000),
                (0, 2000),
                (1000, 3000),
                (2000, 2000),
                (2000, 2000),
                (2000, 2500),
                (1000, 1500),
                (0, 2000),
                (0, 0),
            ],
        ),
    ],
)
def test_activations_rise_and_fall(choice: Choice, expected: list[tuple[int, int]]) -> None:
    assert list(levels(MODEL, choice)) == expected
    assert transient(MODEL, choice) == max(peak for _, peak in expected)


@pytest.mark.parametrize(
    ("costs", "peak"),
    [
        ({}, 2000),  # of the forward that runs again
        ({"above": 1100}, 1300),  # what it made, and a backward above that
        ({"above": 1100, "inputs": 700}, 1600),  # of an input of 700 no more than 200 would be saved
    ],
)
def test_what_is_computed_again_peaks_in_its_forward_or_in_its_backward(costs: dict[str, Any], peak: int) -> None:
    passes = (replace(p, **costs) if p.saved else p for p in MODEL.passes)
    changed = replace(MODEL, passes=tuple(passes))
    begin, highest = list(levels(changed, ways(Way.RECOMPUTE)))[-2]
    assert highest - begin == peak


@pytest.mark.parametrize(("spills", "landing"), [(False, 2), (True, 4)])
def test_all_of_one_device(spills: bool, landing: int) -> None:
    found = footprint(MODEL, Training(1, 8), kept(MODEL), machine(), spills=spills)
    assert found.transient == 4000
    fixed = ROOT * 2 + ROOT * landing
    assert found.fixed == fixed, "the root and its gradients; the others' go to the column as they come"
    assert (found.parameters, found.gradients, found.state) == (BLOCKS * 2, TOTAL * 4, TOTAL * 10)
    assert found.passing == 3 * 300 * 2 + 12 * PAGE
    assert found.total == 4000 + fixed + BLOCKS * 2 + TOTAL * 14
    assert found.least == found.total, "what passes would need more room than all there is"


@pytest.mark.parametrize(
    ("training", "accumulation", "spills", "gradients", "state"),
    [
        (Training(4, 8), 1, True, TOTAL, 10.0),
        (Training(4, 8, clips=False), 1, True, ROOT, 10.0),  # which come over the whole backward
        (Training(4, 8, clips=False), 1, False, TOTAL, 10.0),  # the column is there, though it is never needed
        (Training(4, 8, clips=False), 2, True, TOTAL, 10.0),
        (Training(4, 8, "fp32"), 1, True, TOTAL, 8.0),
        (Training(4, 8, "bf16", "8bit"), 1, True, TOTAL, 2 * 33 / 32 + 2),
    ],
)
def test_gradients_and_state_have_their_precision(
    training: Training, accumulation: int, spills: bool, gradients: int, state: float
) -> None:
    found = footprint(MODEL, training, kept(MODEL, accumulation=accumulation), machine(), spills=spills)
    assert (found.gradients, found.state) == (gradients * 4, int(TOTAL * state))


@pytest.mark.parametrize(
    ("shared", "stage", "gradients"), [(False, 0, ALL), (False, 2, ALL // 2), (True, 0, ROOT), (True, 2, ROOT // 2)]
)
def test_gradients_are_used_up_at_once_where_reductions_end_with_the_backward(
    shared: bool, stage: int, gradients: int
) -> None:
    where = replace(machine(devices=2), shared=shared)
    found = footprint(FIVE, Training(4, 8, clips=False), kept(FIVE, stage), where, spills=True)
    assert found.gradients == gradients * 4


def test_what_is_frozen_has_neither_gradients_nor_state() -> None:
    frozen = replace(FIVE, units=tuple(replace(u, frozen=f) for u, f in zip(FIVE.units, FROZEN, strict=True)))
    trained = ALL - sum(FROZEN)
    found = footprint(frozen, Training(4, 8), kept(frozen), machine(), spills=False)
    assert (found.parameters, found.gradients, found.state) == (1000 * 2, trained * 4, trained * 10)
    assert found.fixed == ROOT * 2 + (ROOT - 20) * 2
    fixed = footprint(frozen, Training(4, 8), kept(frozen, 2), machine(devices=2), spills=False).fixed
    assert fixed == ROOT * 2 + (3 * 200 + ROOT - 20) * 4, "now the largest trains 200"
    assert footprint(frozen, Training(4, 8, clips=False), kept(frozen), machine(), spills=True).gradients == 30 * 4


@pytest.mark.parametrize(
    ("stage", "accumulation", "spills", "parameters", "ranks", "full", "landing"),
    [
        (0, 1, False, 1000 * 2, 1, ROOT, ALL),  # what was made once is kept
        (0, 1, True, 1000 * 2, 1, ROOT, THREE_AND_ROOT),
        (0, 2, False, 1000 * 2, 1, ROOT, ALL),
        (0, 2, True, 1000 * 2, 1, ROOT, ALL),  # they wait for the last micro-batch
        (1, 1, False, 1000 * 2, 4, ROOT, ALL),
        (1, 1, True, 1000 * 2, 4, ROOT, THREE_AND_ROOT),
        (1, 2, True, 1000 * 2, 4, ROOT, ALL),
        (2, 2, False, 1000 * 2, 4, ROOT, THREE_AND_ROOT),
        (2, 2, True, 1000 * 2, 4, ROOT, THREE_AND_ROOT),
        (3, 2, False, 1000 * 2 // 4, 4, ROOT + 2 * LARGEST, THREE_AND_ROOT),  # two units in use
        (3, 2, True, 1000 * 2 // 4, 4, ROOT + 2 * LARGEST, THREE_AND_ROOT),
    ],
)
def test_stages_divide_among_the_ranks(
    stage: int, accumulation: int, spills: bool, parameters: int, ranks: int, full: int, landing: int
) -> None:
    where, choice = machine(nodes=2, devices=2), kept(FIVE, stage, accumulation)
    found = footprint(FIVE, Training(8, 8), choice, where, spills=spills)
    assert (found.parameters, found.fixed) == (parameters, full * 2 + landing * 4)
    assert (found.gradients, found.state) == (ALL * 4 // ranks, ALL * 10 // ranks)
    assert found.passing == 3 * LARGEST * 2 // (4 if stage == 3 else 1) + 12 * PAGE


@pytest.mark.parametrize(
    ("stage", "spills", "parameters", "ranks", "fixed"),
    [
        (0, False, 1000 * 2, 1, ROOT + ALL),  # a mailbox has all gradients
        (0, True, 1000 * 2, 1, ROOT + TWO_AND_ROOT),  # two slots that take turns, and the root's
        (1, False, 1000 * 2 // 4, 4, ROOT // 4 + ALL),  # there is one copy of the parameters
        (1, True, 1000 * 2 // 4, 4, ROOT // 4 + TWO_AND_ROOT),
        (2, False, 1000 * 2 // 4, 4, ROOT // 4 + TWO_AND_ROOT),
        (3, False, 1000 * 2 // 4, 4, ROOT // 4 + TWO_AND_ROOT),  # nothing is gathered
        (3, True, 1000 * 2 // 4, 4, ROOT // 4 + TWO_AND_ROOT),
    ],
)
def test_ranks_of_one_host_share_parameters_and_have_mailboxes(
    stage: int, spills: bool, parameters: int, ranks: int, fixed: int
) -> None:
    where = replace(machine(devices=4), shared=True)
    found = footprint(FIVE, Training(8, 8), kept(FIVE, stage), where, spills=spills)
    assert (found.parameters, found.fixed) == (parameters, fixed * 2)
    assert (found.gradients, found.state) == (ALL * 4 // ranks, ALL * 10 // ranks)


@pytest.mark.parametrize(
    ("stage", "spills", "mailbox", "waiting"),
    [(0, False, ALL, ALL), (0, True, TWO_AND_ROOT, ALL), (1, True, TWO_AND_ROOT, ALL), (2, True, TWO_AND_ROOT, 0)],
)
def test_below_stage_2_gradients_wait_beside_the_mailbox(stage: int, spills: bool, mailbox: int, waiting: int) -> None:
    where = replace(machine(devices=2), shared=True)
    found = footprint(FIVE, Training(8, 8), kept(FIVE, stage, 2), where, spills=spills)
    assert found.fixed == (ROOT // (2 if stage else 1) + mailbox) * 2 + waiting * 4


@pytest.mark.parametrize("group", [None, 4])
def test_ranks_of_several_hosts_share_what_a_group_on_one_has(group: int | None) -> None:
    """Within a group as on one host, and two units' sums beside it; else as over any links."""
    hosts, cores = replace(machine(devices=4), nodes=2, network=1e9), replace(machine(devices=4), shared=True)
    found, over_links, on_one = (
        footprint(FIVE, Training(8, 8), kept(FIVE, 3, group=group), where, spills=False)
        for where in (replace(hosts, shared=True), hosts, cores)
    )
    assert found == (over_links if group is None else on_one)


def test_one_process_on_the_cpu_has_no_mailbox() -> None:
    where = replace(machine(), shared=True)
    assert footprint(FIVE, Training(8, 8), kept(FIVE), where, spills=False).fixed == (ROOT + ROOT) * 2


def test_units_that_stay_gathered_count_from_the_last() -> None:
    where, training = machine(devices=4), Training(4, 8)
    plain, staying = (footprint(FIVE, training, kept(FIVE, 3, gathered=n), where, spills=False).fixed for n in (0, 2))
    assert staying - plain == (250 + 150) * 2


@pytest.mark.parametrize(
    ("budget", "page"),
    [(1, 8 * KIB), (3 * MIB - 1, 8 * KIB), (3 * MIB, 16 * KIB), (64 * MIB, PAGE), (1 << 40, 32 * MIB)],
)
def test_a_budget_is_a_good_many_pages(budget: int, page: int) -> None:
    assert page_bytes(budget, 32 * MIB) == page
    assert footprint(MODEL, Training(1, 8), kept(MODEL), machine(budget), spills=True).page == page


def test_pages_of_hosts_are_smaller() -> None:
    where = replace(machine(1 << 40), shared=True)
    assert footprint(MODEL, Training(1, 8), kept(MODEL), where, spills=True).page == 4 * MIB
