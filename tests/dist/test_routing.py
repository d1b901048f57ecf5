"""Units that a step uses or not, as its data say: each rank others, in another order, under a budget."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import fresh, launch
from tests.dist.models import Block
from tests.dist.spilling import assert_spilling_changes_nothing
from tests.dist.training import OUR_ADAMW, Sample, Task

EXPERTS = 8


class Expert(Block):
    """A unit of its own."""


class Mixture(nn.Module):
    """Layers of a dense block and experts; a route names those that compute, layer by layer, in their order."""

    def __init__(self, layers: int = 2, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.first = nn.Linear(8, 48)
        self.dense = nn.ModuleList(Block(48, 100) for _ in range(layers))
        self.experts = nn.ModuleList(nn.ModuleList(Expert(48, 100) for _ in range(EXPERTS)) for _ in range(layers))
        self.last = nn.Linear(48, 5)

    def forward(self, x: Tensor, route: list[list[int]]) -> Tensor:
        x = self.first(x)
        for layer, chosen in enumerate(route):
            if self.checkpointing:
                x = checkpoint(self.run_layer, x, layer, chosen, use_reentrant=False)
            else:
                x = self.run_layer(x, layer, chosen)
        y: Tensor = self.last(x)
        return torch.tanh(y)

    def run_layer(self, x: Tensor, layer: int, chosen: list[int]) -> Tensor:
        x = self.dense[layer](x)
        for index in chosen:
            x = self.experts[layer][index](x)  # type: ignore[index]
        return x


def route_of(sample: Sample, layers: int = 2) -> list[list[int]]:
    """Any experts in any order, some of them twice; perhaps none."""
    random = Random(f"{sample}")
    return [random.choices(range(EXPERTS), k=random.randint(0, 3)) for _ in range(layers)]


def routed_loss(model: nn.Module, sample: Sample) -> Tensor:
    output: Tensor = model(sample.inputs(4, 8), route_of(sample))
    return output.square().mean()


def loss_after_evaluation(model: nn.Module, sample: Sample) -> Tensor:
    """The loss, after a forward without gradients over another route."""
    with torch.no_grad():
        routed_loss(model, replace(sample, micro=sample.micro + 50))
    return routed_loss(model, sample)


UNITS = ["Block", "Expert"]
ROUTED = Task(Mixture, routed_loss, steps=5, options={"units": UNITS})


def little(folder: Path, device: str = "900KB") -> cd.Memory:
    return cd.Memory(device=device, nvme=f"{folder}:32MB")


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_rank_takes_units_of_its_own(world: int, stage: int, tmp_path: Path) -> None:
    for spilled in assert_spilling_changes_nothing(ROUTED, little(tmp_path), stage, world):
        assert 0 < spilled.spilling.right < spilled.spilling.guesses


USES = {
    "accumulation": replace(ROUTED, sums=(2, 1)),
    "evaluation": replace(ROUTED, loss=loss_after_evaluation),
    "optimizer in the backward": replace(ROUTED, paged=partial(OUR_ADAMW, in_backward=True)),
    "bf16": replace(ROUTED, options={"units": UNITS, "mixed_precision": "bf16"}),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("world", [2, 3])
def test_however_they_are_used(use: str, world: int, tmp_path: Path) -> None:
    assert_spilling_changes_nothing(USES[use], little(tmp_path), 3, world)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_layers_that_are_computed_again(world: int, stage: int, tmp_path: Path) -> None:
    """Ranks need several units of different layers at once: more than they have before the budget is divided."""
    task = replace(ROUTED, make=partial(Mixture, checkpointing=True))
    assert_spilling_changes_nothing(task, little(tmp_path, "1300KB"), stage, world)


def hold(folder: str, count: int) -> tuple[str, list[bool]]:
    """Needs ``count`` units, each rank others, and gives none back before the end.

    Returns the error and which of the units had the right values.
    """
    torch.manual_seed(0)
    plain = Mixture()
    torch.manual_seed(0)
    model = cd.shard(Mixture(), memory=little(Path(folder), "450KB"), units=UNITS)
    sharded = sharded_of(model)
    experts = [unit for unit in sharded.units if unit.name.startswith("experts")]
    found, error = [], ""
    sharded.begin_forward(())
    try:
        for index in range(rank() * count, (rank() + 1) * count):
            sharded.gathers.need(experts[index])
            weight = f"{experts[index].name}.up.weight"
            found.append(torch.equal(model.get_parameter(weight), plain.get_parameter(weight)))
    except BudgetError as caught:
        error = str(caught)
    sharded.end_forward(raised=bool(error))
    return error, found


def test_units_in_use_at_once_share_what_there_is(tmp_path: Path) -> None:
    assert launch(hold, str(tmp_path), 2) == [("", [True] * 2)] * 2


def test_too_many_units_in_use_at_once_are_an_error(tmp_path: Path) -> None:
    """And no rank waits for another that can't go on; where one gives up, the others may have enough."""
    results = launch(hold, str(tmp_path), 8)
    assert all(all(found) for _, found in results)
    errors = [error for error, _ in results if error]
    assert errors
    assert all(re.search(r"use or need .* give memory.device \d+\.\d\d KiB more", error) for error in errors)


def fail_in_a_forward(folder: str) -> None:
    model = cd.shard(Mixture(), memory=little(Path(folder)), units=UNITS)
    optimizer = cd.AdamW(model.parameters())
    for step in range(3):
        route = [[9]] if (rank(), step) == (1, 1) else [[0, 1, 2], [3]]
        model(torch.ones(4, 8), route).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_rank_that_raises_ends_the_others(tmp_path: Path) -> None:
    outcomes = fresh(2, timeout=10.0).run(fail_in_a_forward, str(tmp_path))
    assert "IndexError" in (outcomes[1].error or "")
    assert "PeerLost" in (outcomes[0].error or "")
