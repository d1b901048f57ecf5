"""Sharded training is plain training: the same losses and parameters, whatever the stage, the world and the way."""

from __future__ import annotations

import functools

import pytest

from tests.dist.launch import launch
from tests.dist.training import Task, Training, assert_equal, train_plain, train_sharded

FREE = Task()
CLIPPED = Task(max_norm=0.5)


@functools.cache
def plain(world: int, *, clipped: bool = False) -> list[Training]:
    return train_plain(CLIPPED if clipped else FREE, world)


ways = pytest.mark.parametrize("shared", [True, False], ids=["shared", "collectives"])
stages = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@ways
@stages
def test_two_ranks_train_bit_for_bit_as_one_process(stage: int, shared: bool) -> None:
    assert_equal(launch(train_sharded, FREE, stage, shared=shared), plain(2))


@stages
def test_one_rank_alone_trains_bit_for_bit_as_one_process(stage: int) -> None:
    assert_equal(launch(train_sharded, FREE, stage, world=1), plain(1))


@ways
@stages
def test_three_ranks_train_as_one_process(stage: int, shared: bool) -> None:
    assert_equal(launch(train_sharded, FREE, stage, world=3, shared=shared), plain(3), tolerance=1e-5)


@ways
@stages
def test_clipping_is_torchs(stage: int, shared: bool) -> None:
    """The norm is summed in another order than torch's, which no scaling undoes."""
    expected = plain(2, clipped=True)
    assert max(expected[0].norms) > 0.5, "a norm that is never clipped proves nothing"
    assert_equal(launch(train_sharded, CLIPPED, stage, shared=shared), expected, tolerance=1e-5)
