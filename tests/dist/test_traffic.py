"""How often ranks exchange what, and how many bytes, by arithmetic."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import ciuic_dist as cd
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.status import Status
from tests.dist.launch import launch
from tests.dist.models import Stack

UNITS = 4  # three blocks and the root
STEPS = 3
budgets = pytest.mark.parametrize("memory", [None, cd.Memory(device="600KB", host="16MB")], ids=["free", "budget"])


def traffic(
    stage: int, memory: cd.Memory | None = None, group: int | None = None
) -> tuple[list[tuple[int, int, int, int]], int, int]:
    """What each step added to the counters; bytes of all full forms; those of all but the root's."""
    model = cd.shard(Stack(), stage=stage, memory=memory, group=group)
    optimizer = cd.AdamW(model.parameters())
    counts = [_counts(cd.status(model))]
    for _ in range(STEPS):
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.append(_counts(cd.status(model)))
    units = sharded_of(model).units
    full = sum(flat.full_bytes for unit in units for flat in unit.flats)
    blocks = sum(flat.full_bytes for unit in units[:-1] for flat in unit.flats)
    added = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(counts)]
    return added, full, blocks  # type: ignore[return-value]


def _counts(status: Status) -> tuple[int, int, int, int]:
    return status.gathers, status.gathered_bytes, status.reduces, status.reduced_bytes


@budgets
def test_stage_3_between_hosts_gathers_blocks_twice_and_the_root_once(memory: cd.Memory | None) -> None:
    for added, full, blocks in launch(traffic, 3, memory, shared=False):
        assert added == [(2 * UNITS - 1, (full + blocks) // 2, UNITS, full // 2)] * STEPS


@budgets
@pytest.mark.parametrize("stage", [1, 2])
def test_stages_1_and_2_between_hosts_gather_once_an_update(stage: int, memory: cd.Memory | None) -> None:
    for added, full, _ in launch(traffic, stage, memory, shared=False):
        assert added == [(UNITS, full // 2, UNITS, full // 2)] * STEPS


@budgets
def test_stage_0_between_hosts_only_reduces(memory: cd.Memory | None) -> None:
    for added, full, _ in launch(traffic, 0, memory, shared=False):
        assert added == [(0, 0, UNITS, full)] * STEPS


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_on_one_host_nothing_is_gathered_and_every_mailbox_is_read_once(stage: int) -> None:
    for added, full, _ in launch(traffic, stage):
        assert added == [(0, 0, UNITS, full)] * STEPS  # half of its own mailbox, half of the other's
