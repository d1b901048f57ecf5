"""Where an update may run, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.update.ways import HOST_PEAK, ON_CPU, STREAMED, best_split
from ciuic_dist.estimate.machines import load, names

HOST = replace(load("h100"), up=10.0, down=10.0)


def test_every_shipped_machine_has_a_rate() -> None:
    assert sorted(HOST_PEAK) == names()


@pytest.mark.parametrize(
    ("memory", "part", "seconds"),
    [
        (1e9, 1.0, 0.4),  # four bytes of the gradient
        (10.0, 0.0, 2.0),  # the host's memory bounds both, and streaming touches less of it
        (40.0, 0.5, 0.7),  # (10 - 6 x) / 10 = (20 + 16 x) / 40
    ],
)
def test_the_best_split_is_where_two_bounds_meet(memory: float, part: float, seconds: float) -> None:
    found = best_split(HOST, memory)
    assert [found.part, found.seconds] == pytest.approx([part, seconds])
    for other in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert found.seconds <= STREAMED.mixed(ON_CPU, other).seconds(HOST, memory) * (1 + 1e-9)
