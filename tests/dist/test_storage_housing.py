"""Parameters in memory that an allocator gives and takes: as on GPUs, here on the CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import ciuic_dist as cd
from ciuic_dist.memory.budget import parse_size
from ciuic_dist.sharding import spill
from tests.dist.launch import launch
from tests.dist.spilling import Spilled, below, every_tier, train_spilled
from tests.dist.test_spill_hosts import TALL
from tests.dist.training import OUR_ADAMW, Task, assert_equal, train_sharded

DEVICE = "800KB"
"""All parameters would take 655."""


def without_frames(task: Task, stage: int) -> Spilled:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "shows_frames", lambda _: False)
        return train_spilled(task, stage)


def assert_equal_without_frames(task: Task, memory: cd.Memory, stage: int, world: int) -> None:
    """Ranks of one host, which then send."""
    free = launch(train_sharded, task, stage, world=world, shared=False)
    found = launch(without_frames, replace(task, options={**task.options, "memory": memory}), stage, world=world)
    assert_equal([spilled.training for spilled in found], free)
    for spilled in found:
        assert sum(link.bytes for link in spilled.spilling.links.values()) > 0
        assert memory.device is not None
        assert spilled.peak <= parse_size(memory.device, "device")


@every_tier
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_spilling_changes_nothing(tier: str, world: int, precision: str | None, tmp_path: Path) -> None:
    task = Task(TALL, steps=4, options={"mixed_precision": precision})
    assert_equal_without_frames(task, below(tier, tmp_path, DEVICE), 3, world)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("early", [False, True])
def test_every_stage(stage: int, early: bool, tmp_path: Path) -> None:
    task = Task(TALL, steps=4, paged=partial(OUR_ADAMW, in_backward=early))
    assert_equal_without_frames(task, below("nvme", tmp_path, "1200KB"), stage, 2)


@pytest.mark.parametrize("ways", ["keep", "offload", "recompute"])
def test_activations(ways: str, tmp_path: Path) -> None:
    memory = replace(below("nvme", tmp_path, DEVICE), activations=ways)
    assert_equal_without_frames(Task(TALL, steps=4), memory, 3, 2)
