"""Nodes and devices, from the hosts of ranks."""

from __future__ import annotations

import pytest

from ciuic_dist.estimate.probe import arranged


@pytest.mark.parametrize(
    ("hosts", "nodes", "devices"),
    [
        ("a", 1, 1),
        ("aaa", 1, 3),
        ("aabb", 2, 2),
        ("abc", 3, 1),
        ("abab", 4, 1),  # they take turns
        ("aab", 3, 1),
        ("abb", 3, 1),
        ("aabbaa", 6, 1),
        ("aabbb", 5, 1),
    ],
)
def test_each_rank_is_a_node_where_hosts_dont_have_the_same_number_in_a_row(
    hosts: str, nodes: int, devices: int
) -> None:
    assert arranged(hosts) == (nodes, devices)
