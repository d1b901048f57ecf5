"""One training twice: with memory to spare and within a budget, where nothing but places may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
    activations: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes of the device."""
        return self.tiers["device"].peak


def train_spilled(task: Task, stage: int) -> Spilled:
    """Collective; ``task.options`` has the budget."""
    seen: list[Any] = []
    training = train_sharded(replace(task, at_end=lambda model: seen.append(cd.status(model))), stage)
    return Spilled(training, seen[0].tiers, seen[0].spilling, seen[0].activations)


def assert_spilling_changes_nothing(
    task: Task, memory: cd.Memory, stage: int = 3, world: int = 2, shared: bool = True
) -> list[Spilled]:
    """Trains twice; the second time under ``memory``, which must have been kept and must have been too little."""
    free = launch(train_sharded, task, stage, world=world, shared=shared)
    task = replace(task, options={**task.options, "memory": memory})
    under_budget: list[Spilled] = launch(train_spilled, task, stage, world=world, shared=shared)
    assert_same_bits([spilled.training for spilled in under_budget], free)
    for spilled in under_budget:
        assert memory.device is not None
        assert spilled.peak <= parse_size(memory.device, "device")
        for name, usage in spilled.tiers.items():
            assert usage.budget is not None
            assert usage.peak <= usage.budget
            assert name == "device" or spilled.spilling.links[f"{name}->device"].bytes > 0
    return under_budget


def assert_same_bits(found: list[Training], expected: list[Training]) -> None:
    """Of all ranks: losses, norms, parameters and optimizer state."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.losses == theirs.losses
        assert ours.norms == theirs.norms
        assert_same_tensors(ours.state, theirs.state)
    assert_same_tensors(whole_moments(found), whole_moments(expected))


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Names and bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


every_tier = pytest.mark.parametrize("tier", ["host", "nvme", "host and nvme"])


def below(tier: str, folder: Path, device: str = DEVICE) -> cd.Memory:
    """The budget, with these tiers to spill to."""
    return cd.Memory(
        device=device,
        host={"host": "16MB", "host and nvme": "700KB"}.get(tier),
        nvme=f"{folder}:16MB" if "nvme" in tier else None,
    )
