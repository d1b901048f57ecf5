"""A budget is a promise about the process, not about what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.memory.budget import parse_size
from ciuic_dist.memory.process import anonymous_bytes, return_freed_memory
from tests.dist.launch import launch

DEVICE = "100MB"
SLACK = 32 << 20
"""Bytes: what libraries take for themselves when they are first used, and a heap can't use again."""


class Tower(nn.Module):
    """12 blocks of 2 million parameters: 400 MB with gradients and AdamW's state."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 1024)) for _ in range(12))

    def forward(self, values: Tensor) -> Tensor:
        for block in self.blocks:
            values = values + torch.tanh(block(values))
        return values


def train_and_weigh(folder: str, rows: Sequence[int]) -> tuple[list[int], int]:
    """How far the process had grown after each forward and backward, its part of shared memory included; what moved."""
    return_freed_memory()
    with torch.device("meta"):
        model = Tower()
    before = _bytes()
    cd.shard(model, units=["Sequential"], memory=cd.Memory(device=DEVICE, nvme=f"{folder}:1GB"))
    optimizer = cd.AdamW(model.parameters(), lr=1e-3, in_backward=True)
    seen = []
    for count in rows:
        loss = model(torch.ones(count, 1024)).square().mean()
        seen.append(_bytes() - before)
        loss.backward()
        seen.append(_bytes() - before)
        optimizer.step()
    return seen, sum(link.bytes for link in cd.status(model).spilling.links.values())


def _bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    shared = next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Shmem:"))
    return anonymous_bytes() + shared


@pytest.mark.parametrize("rows", [[32] * 8, [32] * 4 + [256] * 4])
def test_the_process_grows_by_no_more_than_its_budget(rows: Sequence[int], tmp_path: Path) -> None:
    for seen, moved in launch(train_and_weigh, str(tmp_path), rows, world=2):
        assert max(seen) <= parse_size(DEVICE, "device") + SLACK
        assert moved > 4 * 150e6  # a rank has 100 MB of masters and 100 MB of moments, which come and go
