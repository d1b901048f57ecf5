"""One training twice: with memory to spare and within a budget, where nothing but places may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ciuic_dist as cd
from ciuic_dist.memory.budget import parse_size
from ciuic_dist.monitor.spilling import Spilling
from ciuic_dist.monitor.usage import TierUsage
from tests.dist.launch import launch
from tests.dist.models import Stack
from tests.dist.training import Task, Training, train_sharded, whole_moments

DEVICE = "1MB"
WIDE = partial(Stack, 48, 200)
"""Three blocks of 19 thousand parameters: state and gradients are many times the budget's pages."""


class Deep(Stack):
    """More blocks than a budget has room for."""

    def __init__(self, blocks: int = 9, inner: int = 200) -> None:
        super().__init__(48, inner)
        self.blocks.extend(type(self.blocks[0])(48, inner) for _ in range(blocks - len(self.blocks)))


@dataclass(frozen=True, slots=True)
class Spilled:
    """What a rank trained, and what its memory did meanwhile."""

    training: Training
    tiers: dict[str, TierUsage]
    spilling: Spilling

    @property
    def peak(self) -> int:
        """Bytes of the device."""
        return self.tiers["device"].peak


def train_spilled(task: Task, stage: int) -> Spilled:
    """Collective; ``task.options`` has the budget."""
    seen: list[Any] = []
    training = train_sharded(replace(task, at_end=lambda model: seen.append(cd.status(model))), stage)
    return Spilled(training, seen[0].tiers, seen[0].spilling)


def assert_spilling_changes_nothing(
    task: Task, memory: cd.Memory, stage: int = 3, world: int = 2, shared: bool = True
) -> list[Spilled]:
    """Trains twice; the second time under ``memory``, which must have been kept and must have been too little."""
    free = launch(train_sharded, task, stage, world=world, shared=shared)
    task = replace(task, options={**task.options, "memory": memory})
    under_budget: list[Spilled] = launch(train_spilled, task, stage, world=world, shared=shared)
    for rank, spilled in enumerate(under_budget):
        assert spilled.training.losses == free[rank].losses
        assert spilled.training.norms == free[rank].norms
        assert spilled.training.state.keys() == free[rank].state.keys()
        for name, value in free[rank].state.items():
            assert torch.equal(spilled.training.state[name], value), name
        assert memory.device is not None
        assert spilled.peak <= parse_size(memory.device, "device")
        for name, usage in spilled.tiers.items():
            assert usage.budget is not None
            assert usage.peak <= usage.budget
            assert name == "device" or spilled.spilling.links[f"{name}->device"].bytes > 0
    moments, expected = whole_moments(spilled.training for spilled in under_budget), whole_moments(free)
    assert moments.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(moments[name], value), name
    return under_budget


every_tier = pytest.mark.parametrize("tier", ["host", "nvme", "host and nvme"])


def below(tier: str, folder: Path, device: str = DEVICE) -> cd.Memory:
    """The budget, with these tiers to spill to."""
    return cd.Memory(
        device=device,
        host={"host": "16MB", "host and nvme": "700KB"}.get(tier),
        nvme=f"{folder}:16MB" if "nvme" in tier else None,
    )
