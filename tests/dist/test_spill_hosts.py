"""The same where ranks share no memory: parameters come from lower tiers and over the network."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import launch
from tests.dist.spilling import Deep, assert_spilling_changes_nothing, below, every_tier
from tests.dist.training import OUR_ADAMW, Sample, Task, made, mean_square, train_sharded

between_hosts = partial(assert_spilling_changes_nothing, shared=False)
BLOCKS = 20
TALL = partial(Deep, BLOCKS, 80)
DEVICE = "650KB"
"""Of which units in use take 98 and what is on the wire some 250; all parameters would take 655."""

every_stage = pytest.mark.parametrize("stage", range(4))


@every_tier
@every_stage
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_every_stage_tier_and_precision(tier: str, stage: int, precision: str | None, tmp_path: Path) -> None:
    task = Task(TALL, steps=4, options={"mixed_precision": precision})
    between_hosts(task, below(tier, tmp_path, DEVICE), stage)


@every_stage
def test_accumulation_and_clipping(stage: int, tmp_path: Path) -> None:
    # Below stage 2 a rank keeps its own gradients, at stage 3 more of them wait where a peer is late.
    device = {2: DEVICE, 3: "900KB"}.get(stage, "1500KB")
    between_hosts(Task(TALL, steps=4, sums=(1, 2), max_norm=0.05), below("nvme", tmp_path, device), stage)


@every_stage
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_the_optimizer_in_the_backward(stage: int, precision: str | None, tmp_path: Path) -> None:
    task = Task(TALL, steps=4, paged=partial(OUR_ADAMW, in_backward=True), options={"mixed_precision": precision})
    between_hosts(task, below("nvme", tmp_path, DEVICE), stage)


@pytest.mark.parametrize("stage", [1, 3])
def test_three_ranks(stage: int, tmp_path: Path) -> None:
    between_hosts(Task(TALL, steps=4), below("nvme", tmp_path, "900KB"), stage, world=3)  # blocks are padded more


@dataclass(frozen=True, slots=True)
class Moved:
    """Flats; bytes of blocks, of the root, of all that was written below; what each forward read and gathered."""

    flats: int
    blocks: int
    root: int
    written: int
    read: list[int]
    gathers: list[int]
    gathered: list[int]


def forwards_alone(stage: int, memory: cd.Memory) -> Moved:
    """Three of them; without backwards nothing but parameters moves."""
    model = cd.shard(made(Task(TALL)), stage=stage, memory=memory)
    seen = [cd.status(model)]
    for step in range(3):
        with torch.no_grad():
            mean_square(model, Sample(0, step, 0))
        seen.append(cd.status(model))
    sharded_of(model).close()  # what is being written is written then
    flats = sharded_of(model).flats
    return Moved(
        len(flats),
        sum(flat.full_bytes for flat in flats[:-1]),
        flats[-1].full_bytes,
        cd.status(model).spilling.links["device->nvme"].bytes,
        [b.spilling.since(a.spilling).links["nvme->device"].bytes for a, b in pairwise(seen)],
        [b.gathers - a.gathers for a, b in pairwise(seen)],
        [b.gathered_bytes - a.gathered_bytes for a, b in pairwise(seen)],
    )


@every_stage
def test_what_moves_in_a_forward_is_what_arithmetic_says(stage: int, tmp_path: Path) -> None:
    for moved in launch(forwards_alone, stage, below("nvme", tmp_path, DEVICE), shared=False):
        own = moved.blocks // 2 if stage == 3 else moved.blocks  # below: copies too
        assert moved.written == own
        assert moved.read[1:] == [own] * 2
        times = {0: [0, 0, 0], 3: [1, 1, 1]}.get(stage, [1, 0, 0])
        assert moved.gathers == [moved.flats * count for count in times]
        assert moved.gathered == [(moved.blocks + moved.root) // 2 * count for count in times]


def save_and_go_on(path: Path, stage: int, memory: cd.Memory | None) -> dict[str, Tensor]:
    model = cd.shard(made(Task(TALL)), stage=stage, memory=memory)
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(2))
    cd.save(path, model=model, optimizer=optimizer)
    train(model, optimizer, range(2, 5))
    return cd.full_state_dict(model)


def load_and_go_on(path: Path, stage: int, memory: cd.Memory | None) -> dict[str, Tensor]:
    model = cd.shard(made(Task(TALL), seed=99), stage=stage, memory=memory)
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(3))  # full forms are there that are outdated then
    cd.load(path, model=model, optimizer=optimizer)
    train(model, optimizer, range(2, 5))
    return cd.full_state_dict(model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        mean_square(model, Sample(rank(), step, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()


@every_stage
def test_checkpoints(stage: int, tmp_path: Path) -> None:
    memory = below("nvme", tmp_path, DEVICE)
    expected = launch(save_and_go_on, tmp_path / "a", stage, None, shared=False)
    for found in (
        launch(save_and_go_on, tmp_path / "b", stage, memory, shared=False),
        launch(load_and_go_on, tmp_path / "b", stage, memory, shared=False),
    ):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def threads_after(models: int) -> int:
    """Of this process, when so many models were trained and are gone."""
    for _ in range(models):
        train_sharded(Task(TALL, steps=1), 3)
    gc.collect()
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_model_that_is_gone_leaves_no_threads() -> None:
    assert launch(threads_after, 4, shared=False) == launch(threads_after, 1, shared=False)
