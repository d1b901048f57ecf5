"""A model sharded as a plan says trains as without it, and keeps full what the plan keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from tests.dist.launch import launch
from tests.dist.spilling import Deep
from tests.dist.training import Sample, Task, made, mean_square

BLOCKS = 4
HOSTS = Machine("two hosts", 2, 1, 1 << 30, 1e12, 1e12, 1e10, 1e-6, network=1e9, nvme=1 << 30, read=1e9, write=1e9)


def small() -> nn.Module:
    return Deep(BLOCKS, 16)


def plan_of(gathered: int, stage: int = 3) -> Plan:
    found = cd.plan(small, HOSTS, torch.empty(1, 8), sequences=8, stage=stage)
    units = [replace(unit, gathered=index >= BLOCKS - gathered) for index, unit in enumerate(found.units)]
    return replace(found, units=tuple(units))


def train(plan: Plan | None, memory: cd.Memory | None = None) -> tuple[dict[str, Tensor], list[int], int | None]:
    """The parameters after three steps, gathers of blocks in each, and the device's budget."""
    model = cd.shard(made(Task(small)), memory=memory, plan=plan)
    optimizer = cd.AdamW(model.parameters())
    gathers = []
    for step in range(3):
        before = cd.status(model).gathers
        mean_square(model, Sample(rank(), step, 0)).backward()
        gathers.append(cd.status(model).gathers - before)
        optimizer.step()
        optimizer.zero_grad()
    budget = cd.status(model).tiers["device"].budget
    return cd.full_state_dict(model), gathers, budget


@pytest.mark.parametrize("gathered", [0, 1, BLOCKS])
def test_units_that_stay_are_gathered_once_a_step(gathered: int) -> None:
    expected = launch(train, None, shared=False)
    found = launch(train, plan_of(gathered), shared=False)
    for (state, gathers, _), (plain, unplanned, _) in zip(found, expected, strict=True):
        torch.testing.assert_close(state, plain, rtol=0.0, atol=0.0)
        assert unplanned[1:] == [2 * BLOCKS + 1] * 2, "each block for forward and backward, the root once"
        assert gathers[1:] == [2 * BLOCKS + 1 - gathered] * 2


def test_a_plan_that_spills_brings_its_budget(tmp_path: Path) -> None:
    plan = replace(plan_of(0), spills=True, device=600_000, nvme=1 << 20)
    memory = cd.Memory(nvme=f"{tmp_path}:8MB")
    for (state, _, budget), (plain, _, _) in zip(
        launch(train, plan, memory, shared=False), launch(train, None, shared=False), strict=True
    ):
        assert budget == 600_000
        torch.testing.assert_close(state, plain, rtol=0.0, atol=0.0)


def test_a_plan_that_spills_to_nvme_wants_a_folder() -> None:
    plan = replace(plan_of(0), spills=True, device=600_000, nvme=1 << 20)
    with pytest.raises(ValueError, match=r"spills \d+\.\d\d [KM]iB to NVMe: name the folder"):
        cd.shard(small(), plan=plan)


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the plan is for .* with 4 units, and this model has 3"):
        cd.shard(Deep(BLOCKS - 1, 16), plan=plan_of(0))


def other_plans() -> None:
    cd.shard(small(), plan=plan_of(rank()))


def test_ranks_with_different_plans_are_told() -> None:
    with pytest.raises(Exception, match="plan"):
        launch(other_plans, shared=False)


CORES = Machine("cores", 1, 2, 1 << 30, 1e12, 1e12, 1e10, 1e-6, host=1 << 30, up=1e10, down=1e10, shared=True)


def train_within(plan: Plan) -> tuple[list[float], dict[str, TierUsage]]:
    """Five losses under the plan's own budgets, and what tiers held."""
    model = cd.shard(made(Task(Deep)), plan=plan)
    optimizer = cd.AdamW(model.parameters())
    losses = []
    for index in range(5):
        loss = mean_square(model, Sample(rank(), index, 0))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, cd.status(model).tiers


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("share", [0.7, 0.9, 0.98])
def test_a_plan_that_spills_is_followed_within_its_own_budgets(stage: int, share: float) -> None:
    """Also one that spills less than parameters take, which need a place below all the same."""
    roomy = cd.plan(Deep, CORES, torch.empty(1, 8), sequences=8, stage=stage)
    device = int(share * roomy.predicted.peak["device"])
    plan = cd.plan(Deep, replace(CORES, memory=device), torch.empty(1, 8), sequences=8, stage=stage)
    assert plan.spills
    assert plan.host > 2 * plan.predicted.peak.get("host", 0)
    free = launch(train_within, roomy)
    for (losses, tiers), (expected, _) in zip(launch(train_within, plan), free, strict=True):
        assert losses == expected
        assert tiers["device"].peak <= device
        assert 0 < tiers["host"].peak <= plan.host // 2


def planned_on_one() -> None:
    cd.shard(small(), plan=plan_of(0) if rank() else None, stage=3)


@pytest.mark.parametrize("shared", [True, False])
def test_a_plan_on_some_ranks_only_is_told(shared: bool) -> None:
    with pytest.raises(AssertionError, match="plan"):
        launch(planned_on_one, shared=shared)
