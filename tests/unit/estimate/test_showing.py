"""What it takes to map parameters."""

from __future__ import annotations

from pathlib import Path

from ciuic_dist.estimate.showing import measure_showing


def test_the_frames_are_gone_afterwards() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert 0 < measure_showing(1 << 16, 1 << 20) < 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before
