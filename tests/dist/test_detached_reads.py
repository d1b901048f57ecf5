"""A unit that reads its weights once more without a gradient, below their last use with one, finds them unchanged."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import ciuic_dist as cd
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import launch
from tests.dist.models import DetachedBelow, Stack
from tests.dist.spilling import assert_spilling_changes_nothing
from tests.dist.training import OUR_ADAMW, Task, assert_equal, train_plain, train_sharded

READS = partial(Stack, 48, 200, make_block=DetachedBelow)
UNDER_BUDGET = cd.Memory(device="900KB", host="16MB")


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_a_unit_stays_as_it_is_until_its_backward_is_over(world: int, early: bool) -> None:
    task = Task(READS, steps=4, paged=partial(OUR_ADAMW, in_backward=early))
    plain = train_plain(task, world)
    for stage in range(4):
        assert_equal(launch(train_sharded, task, stage, world=world), plain)
        assert_spilling_changes_nothing(task, UNDER_BUDGET, stage, world)


def units_that_detach() -> list[bool]:
    model = cd.shard(Stack(48, 200), memory=UNDER_BUDGET)
    model(torch.ones(4, 8)).sum().backward()
    return [unit.detaches for unit in sharded_of(model).units]


def test_what_is_saved_for_the_backward_counts_as_no_such_read() -> None:
    assert launch(units_that_detach, world=1) == [[False] * 4]
