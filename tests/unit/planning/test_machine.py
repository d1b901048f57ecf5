"""Seconds of passes and collectives, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Pass

WHERE = Machine(
    "where",
    nodes=4,
    devices=2,
    memory=1000,
    bf16=100.0,
    fp32=50.0,
    bandwidth=10.0,
    launch=0.5,
    peers=8.0,
    network=4.0,
    latency=0.25,
    host=301,
    nvme=41,
)


def test_a_node_is_divided_among_its_devices() -> None:
    assert (WHERE.world, WHERE.node_host, WHERE.node_nvme) == (8, 150, 20)


@pytest.mark.parametrize(
    ("cost", "precision", "seconds"),
    [
        (Pass(0, False, 1000.0, streamed=50.0), "bf16", 10.0),
        (Pass(0, False, 1000.0, streamed=50.0), "fp32", 20.0),
        (Pass(0, False, 1000.0, streamed=150.0), "bf16", 15.0),
        (Pass(0, False, 1000.0, streamed=50.0, touched=30.0), "bf16", 13.0),
        (Pass(0, False, 0.0, touched=30.0, ops=5), "bf16", 3.0),
        (Pass(0, False, 0.0, touched=30.0, ops=8), "bf16", 4.0),
        (Pass(0, False, 1000.0, touched=30.0, ops=8, seconds=0.125), "bf16", 4.125),  # as measured, and called
    ],
)
def test_a_pass_takes_as_long_as_what_bounds_it(cost: Pass, precision: str, seconds: float) -> None:
    assert WHERE.seconds(cost, precision) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("where", "seconds"),
    [
        (WHERE, 0.25 + 64 * 3 / 4 / 4),  # the network: three quarters come from other nodes
        (replace(WHERE, network=100.0), 0.25 + 64 * 7 / 8 / 8),  # the node's own links
        (replace(WHERE, nodes=1, devices=4, network=0.0), 0.25 + 64 * 3 / 4 / 8),
        (replace(WHERE, devices=1, peers=0.0), 0.25 + 64 * 3 / 4 / 4),
        (replace(WHERE, nodes=1, devices=1), 0.0),
        (replace(WHERE, nodes=1, shared=True), 0.0),
        (replace(WHERE, shared=True), 0.25 + 64 / 8 / 8 + 2 * 64 * 6 / 8 / 4),  # each rank gets all by itself
        (replace(WHERE, devices=1, peers=0.0, shared=True), 0.25 + 64 * 3 / 4 / 4),
    ],
)
def test_a_gather_is_bound_by_the_slower_links(where: Machine, seconds: float) -> None:
    assert where.gather_seconds(64.0, where.world) == pytest.approx(seconds)


def test_cores_of_a_node_map_what_the_others_have_and_those_of_several_dont() -> None:
    cores = replace(WHERE, shared=True)
    assert [cores.gather_seconds(64.0, ranks) > 0 for ranks in (1, 2, 4)] == [False, False, True]
    assert [cores.maps(ranks) for ranks in (1, 2, 4)] == [True, True, False]
    assert not WHERE.maps(2)
