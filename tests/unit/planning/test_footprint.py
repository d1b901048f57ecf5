"""Bytes of a device, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.footprint import footprint, levels, transient
from ciuic_dist.planning.pages import page_bytes
from ciuic_dist.planning.training import Choice, Training
from tests.unit.planning.jobs import KIB, MIB, kept, machine, stack

MODEL = stack([100, 300, 200], 50)
"""A block saves 1000 bytes beside an input of 200, and has 2000 at its peak; its backward 500 beyond what it begins
with."""
TOTAL, BLOCKS, ROOT, LARGEST = 650, 600, 50, 300
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
        (  # inputs stay; a unit's activations are there again for its backward
            ways(Way.RECOMPUTE),
            [
                (0, 0),
                (0, 2000),
                (200, 2200),
                (400, 2400),
                (600, 600),
                (600, 600),
                (600, 2100),
                (400, 1900),
                (200, 1700),
                (0, 0),
            ],
        ),
        (
            ways(Way.OFFLOAD, below=True),
            [(0, 0), (0, 2000), (0, 2000), (0, 2000), (0, 0), (0, 0), (0, 1500), (0, 1500), (0, 1500), (0, 0)],
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
                (0, 1500),
                (0, 0),
            ],
        ),
    ],
)
def test_activations_rise_and_fall(choice: Choice, expected: list[tuple[int, int]]) -> None:
    assert list(levels(MODEL, choice)) == expected
    assert transient(MODEL, choice) == max(peak for _, peak in expected)


def test_all_of_one_device() -> None:
    found = footprint(MODEL, Training(1, 8), kept(MODEL), machine())
    assert found.transient == 4000
    assert found.fixed == (ROOT + 2 * LARGEST + ROOT) * 2, "the root, and gradients of two units and the root"
    assert (found.parameters, found.gradients, found.state) == (BLOCKS * 2, TOTAL * 4, TOTAL * 10)
    assert found.passing == 3 * LARGEST * 2 + 12 * PAGE
    assert found.total == 4000 + 1400 + BLOCKS * 2 + TOTAL * 14
    assert found.least == found.total, "what passes would need more room than all there is"


@pytest.mark.parametrize(
    ("training", "accumulation", "gradients", "state"),
    [
        (Training(4, 8), 1, 4, 10.0),
        (Training(4, 8, clips=False), 1, 0, 10.0),
        (Training(4, 8, clips=False), 2, 4, 10.0),
        (Training(4, 8, "fp32"), 1, 4, 8.0),
        (Training(4, 8, "bf16", "8bit"), 1, 4, 2 * 33 / 32 + 2),
    ],
)
def test_gradients_and_state_have_their_precision(
    training: Training, accumulation: int, gradients: int, state: float
) -> None:
    found = footprint(MODEL, training, kept(MODEL, accumulation=accumulation), machine())
    assert (found.gradients, found.state) == (TOTAL * gradients, int(TOTAL * state))


@pytest.mark.parametrize(
    ("stage", "accumulation", "parameters", "ranks", "fixed"),
    [
        (0, 1, BLOCKS * 2, 1, ROOT + 2 * LARGEST + ROOT),
        (0, 2, BLOCKS * 2, 1, ROOT + TOTAL),  # gradients wait for the last micro-batch
        (1, 2, BLOCKS * 2, 4, ROOT + TOTAL),
        (2, 2, BLOCKS * 2, 4, ROOT + 2 * LARGEST + ROOT),
        (3, 2, BLOCKS * 2 // 4, 4, ROOT + 2 * LARGEST + 2 * LARGEST + ROOT),  # two units in use
    ],
)
def test_stages_divide_among_the_ranks(stage: int, accumulation: int, parameters: int, ranks: int, fixed: int) -> None:
    found = footprint(MODEL, Training(8, 8), kept(MODEL, stage, accumulation), machine(nodes=2, devices=2))
    assert (found.parameters, found.fixed) == (parameters, fixed * 2)
    assert (found.gradients, found.state) == (TOTAL * 4 // ranks, TOTAL * 10 // ranks)
    assert found.passing == 3 * LARGEST * 2 // (4 if stage == 3 else 1) + 12 * PAGE


def test_units_that_stay_gathered_count_from_the_last() -> None:
    where = machine(devices=4)
    plain, staying = (footprint(MODEL, Training(4, 8), kept(MODEL, 3, gathered=n), where).fixed for n in (0, 2))
    assert staying - plain == (300 + 200) * 2


@pytest.mark.parametrize(
    ("budget", "page"),
    [(1, 8 * KIB), (3 * MIB - 1, 8 * KIB), (3 * MIB, 16 * KIB), (64 * MIB, PAGE), (1 << 40, 32 * MIB)],
)
def test_a_budget_is_a_good_many_pages(budget: int, page: int) -> None:
    assert page_bytes(budget, 32 * MIB) == page
    assert footprint(MODEL, Training(1, 8), kept(MODEL), machine(budget)).page == page


def test_pages_of_hosts_are_smaller() -> None:
    where = replace(machine(1 << 40), shared=True)
    assert footprint(MODEL, Training(1, 8), kept(MODEL), where).page == 4 * MIB
