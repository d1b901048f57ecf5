"""A budget is a promise about the process, not about what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.memory.budget import parse_size
from ciuic_dist.memory.live import LiveBytes
from ciuic_dist.memory.process import anonymous_bytes, return_freed_memory
from tests.dist.launch import launch

DEVICE = "100MB"
SLACK = 32 << 20
"""Bytes: what libraries take for themselves when they are first used, and a heap can't use again."""
SAVING = 7 << 20
"""Bytes: a buffer of 4 MiB before the drive, and four copies of three pages of 256 KiB."""

pytestmark = pytest.mark.alone


class Tower(nn.Module):
    """12 blocks of 2 million parameters: 400 MB with gradients and AdamW's state."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 1024)) for _ in range(12))

    def forward(self, values: Tensor) -> Tensor:
        for block in self.blocks:
            values = values + torch.tanh(block(values))
        return values


def train_and_weigh(folder: str, rows: Sequence[int], save: bool) -> tuple[list[int], int]:
    """How far the process had grown after each forward and backward, its part of shared memory included; what moved.

    The backward updates, and where it is to ``save``, copies what a checkpoint gets.
    """
    return_freed_memory()
    with torch.device("meta"):
        model = Tower()
    before = process_bytes()
    cd.shard(model, units=["Sequential"], memory=cd.Memory(device=DEVICE, nvme=f"{folder}:1GB"))
    optimizer = cd.AdamW(model.parameters(), lr=1e-3, in_backward=True)
    seen = []
    for count in rows:
        loss = model(torch.ones(count, 1024)).square().mean()
        seen.append(process_bytes() - before)
        if save:
            cd.save(Path(folder, "checkpoint"), model=model, optimizer=optimizer, wait=False)
        loss.backward()
        seen.append(process_bytes() - before)
        optimizer.step()
    return seen, sum(link.bytes for link in cd.status(model).spilling.links.values())


def process_bytes() -> int:
    """Memory of this process, its part of what it shares included; files apart."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    shared = next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Shmem:"))
    return anonymous_bytes() + shared


@pytest.mark.parametrize(("rows", "save"), [([32] * 8, False), ([32] * 4 + [256] * 4, False), ([32] * 6, True)])
def test_the_process_grows_by_no_more_than_its_budget(rows: Sequence[int], save: bool, tmp_path: Path) -> None:
    for seen, moved in launch(train_and_weigh, str(tmp_path), rows, save, world=2):
        assert max(seen) <= parse_size(DEVICE, "device") + SLACK + save * SAVING
        assert moved > 4 * 150e6  # a rank has 100 MB of masters and 100 MB of moments, which come and go


class Made(LiveBytes):
    """Counts what operators make, freed again or not: it may go to the heap, and leave holes."""

    nbytes = 0

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.nbytes += storage.nbytes()
        super()._count(storage)


def weigh_checkpoint(folder: str) -> tuple[list[int], int]:
    """How far the process grew, at most, in saving and in loading what was trained; what another load made."""
    with torch.device("meta"):
        model = Tower()
    cd.shard(model, units=["Sequential"], memory=cd.Memory(device=DEVICE, nvme=f"{folder}:1GB"))
    optimizer = cd.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        model(torch.ones(32, 1024)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    path = Path(folder, "checkpoint")
    grew = []
    for call in (cd.save, cd.load):
        return_freed_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark begins anew
        before = _resident("VmRSS")
        call(path, model=model, optimizer=optimizer)
        grew.append(_resident("VmHWM") - before)
    with Made() as made:
        cd.load(path, model=model, optimizer=optimizer)
    return grew, made.nbytes


def _resident(mark: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{mark}:"))


def test_a_checkpoint_is_saved_and_loaded_within_the_budget(tmp_path: Path) -> None:
    for (saving, loading), made in launch(weigh_checkpoint, str(tmp_path), world=1):
        assert saving < SLACK  # of 300 MB
        assert loading < SLACK
        assert made < 4 << 20  # of 200 MB of state
