"""A model sharded as a plan says trains as without it, and keeps full what the plan keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from tests.dist.launch import launch
from tests.dist.spilling import Deep
from tests.dist.test_activations import ROWS
from tests.dist.test_activations import Deep as Saving
from tests.dist.test_activations import step as train_step
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


CORE = replace(CORES, devices=1, host=0, up=0.0, down=0.0)


def planned_saving(where: Machine) -> Plan:
    """Of a model whose activations are most of what it takes."""
    return cd.plan(Saving, where, torch.empty(1, ROWS, 8), sequences=1)


def train_saving(plan: Plan, *, keep_graph: bool = False) -> tuple[list[float], dict[str, int], dict[str, TierUsage]]:
    """Four losses, what became of activations, and what tiers held."""
    torch.manual_seed(0)
    model = cd.shard(Saving(), plan=plan)
    optimizer = cd.AdamW(model.parameters())
    losses = [train_step(model, optimizer, keep_graph=keep_graph) for _ in range(4)]
    status = cd.status(model)
    return losses, status.activations, status.tiers


@pytest.mark.parametrize(("share", "kept"), [(0.65, 1), (0.75, 2), (0.95, 4)])
def test_alone_as_many_blocks_are_recomputed_as_planned(share: float, kept: int) -> None:
    roomy = planned_saving(CORE)
    plan = planned_saving(replace(CORE, memory=int(share * roomy.predicted.peak["device"])))
    assert (plan.spills, plan.host, plan.nvme, plan.recompute) == (True, 0, 0, False)
    [(free, _, _)], [(losses, ways, tiers)] = (launch(train_saving, made, world=1) for made in (roomy, plan))
    assert losses == free
    assert ways == {"keep": kept + 1, "offload": 0, "recompute": 6 - kept}, "and the root's are kept"
    assert [unit.activations for unit in plan.units] == [Way.RECOMPUTE] * (6 - kept) + [Way.KEEP] * (kept + 1)
    assert tiers["device"].peak <= plan.device


@pytest.mark.parametrize("link", [1e8, 3e8, 1e9])
@pytest.mark.parametrize("share", [0.65, 0.85])
def test_with_a_tier_below_each_block_has_the_way_that_was_planned(share: float, link: float) -> None:
    roomy = planned_saving(CORE)
    tight = replace(CORE, memory=int(share * roomy.predicted.peak["device"]), host=1 << 30, up=link, down=link)
    plan = planned_saving(tight)
    planned = Counter(unit.activations for unit in plan.units)
    [(free, _, _)], [(losses, ways, tiers)] = (launch(train_saving, made, world=1) for made in (roomy, plan))
    assert losses == free
    assert ways == {way: planned[way] for way in Way}
    assert tiers["device"].peak <= plan.device
    assert tiers["host"].peak <= plan.host


def test_fewer_are_kept_where_what_is_kept_does_not_go_with_its_backward() -> None:
    """Plans count on it: the room serves what is made again, then."""
    roomy = planned_saving(CORE)
    where = replace(CORE, memory=int(0.65 * roomy.predicted.peak["device"]), host=1 << 30, up=1e8, down=1e8)
    plan = planned_saving(where)
    (gone,) = launch(train_saving, plan, world=1)
    (stays,) = launch(partial(train_saving, keep_graph=True), plan, world=1)
    assert stays[0] == gone[0]
    assert stays[1]["keep"] < gone[1]["keep"]


def limited(share: float, host: int) -> Plan:
    roomy = planned_saving(CORE)
    device = int(share * roomy.predicted.peak["device"])
    return planned_saving(replace(CORE, memory=device, host=host, up=1e9, down=1e9))


@pytest.mark.parametrize(("share", "host"), [(0.5, 8), (0.65, 4), (0.65, 8), (0.85, 4), (0.85, 8)])
def test_plans_that_send_activations_below_have_room_for_all_while_they_are_watched(share: float, host: int) -> None:
    plan = limited(share, host << 20)
    [(_, ways, tiers)] = launch(train_saving, plan, world=1)
    assert plan.recompute or ways == {way: Counter(unit.activations for unit in plan.units)[way] for way in Way}
    assert tiers["device"].peak <= plan.device


def planned_on_one() -> None:
    cd.shard(small(), plan=plan_of(0) if rank() else None, stage=3)


@pytest.mark.parametrize("shared", [True, False])
def test_a_plan_on_some_ranks_only_is_told(shared: bool) -> None:
    with pytest.raises(AssertionError, match="plan"):
        launch(planned_on_one, shared=shared)
