"""Probing where ranks are on several hosts: links within one and between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import ciuic_dist as cd
from ciuic_dist.comm import groups
from ciuic_dist.comm.groups import rank
from ciuic_dist.estimate.probe import probe
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import launch
from tests.dist.spilling import Deep
from tests.dist.training import Sample, mean_square


@contextmanager
def on_hosts(hosts: str) -> Iterator[pytest.MonkeyPatch]:
    """Rank r is on the host of the r-th letter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "host_identity", lambda: hosts[rank()])
        yield patch


def probe_on(hosts: str, nvme: int) -> Machine:
    with on_hosts(hosts):
        return probe(nvme=nvme)


def test_links_within_nodes_and_between_them_are_measured_apart() -> None:
    first, *others = launch(probe_on, "aabb", 1000, world=4)
    assert (first.nodes, first.devices, first.shared, first.nvme) == (2, 2, True, 1000)
    assert min(first.peers, first.network, first.latency) > 0
    rates = [asdict(machine) | {"memory": 0} for machine in (first, *others)]  # some is free, from moment to moment
    assert rates == [rates[0]] * 4


def test_ranks_of_hosts_with_unequal_numbers_are_nodes_of_their_own() -> None:
    machine = launch(probe_on, "aab", 1000, world=3)[0]
    assert (machine.nodes, machine.devices, machine.nvme, machine.peers) == (3, 1, 500, 0.0)
    assert machine.network > 0


def plan_and_train(folder: Path) -> tuple[int | None, float]:
    """The plan's group, and the loss of its first step."""
    with on_hosts("aabb") as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        torch.manual_seed(0)
        model = Deep(4, 16)
        plan = cd.plan(model, "probe", torch.empty(1, 8), sequences=8, stage=3)
        cd.shard(model, plan=plan)
        loss = mean_square(model, Sample(rank(), 0, 0))
        loss.backward()
        sharded_of(model).close()
        return plan.group, loss.item()


def test_a_plan_for_the_hosts_there_are_shards_within_each(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Deep(4, 16)
    for number, (group, loss) in enumerate(launch(plan_and_train, tmp_path, world=4)):
        assert group == 2
        assert loss == pytest.approx(mean_square(plain, Sample(number, 0, 0)).item(), rel=1e-6)


CORES = Machine(
    "cores", 3, 1, 1 << 30, 1e12, 1e12, 1e10, 1e-6, network=1e9, host=1 << 30, up=1e10, down=1e10, shared=True
)


def train_where_hosts_are_unequal(plan: Plan) -> int | None:
    """This rank's budget for the host, under the plan's own."""
    with on_hosts("aab"):
        model = cd.shard(Deep(9, 200), plan=plan)
        mean_square(model, Sample(rank(), 0, 0)).backward()
        budget = cd.status(model).tiers["host"].budget
        sharded_of(model).close()
        return budget


def test_ranks_of_hosts_with_unequal_numbers_each_have_what_is_planned() -> None:
    roomy = cd.plan(Deep, CORES, torch.empty(1, 8), sequences=6, stage=3)
    where = replace(CORES, memory=int(0.6 * roomy.predicted.peak["device"]))
    plan = cd.plan(Deep, where, torch.empty(1, 8), sequences=6, stage=3)
    first, *others = launch(train_where_hosts_are_unequal, plan, world=3)
    assert first == pytest.approx(plan.host, rel=0.01)
    assert others == [first] * 2
