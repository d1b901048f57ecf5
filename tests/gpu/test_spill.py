"""One process on one GPU whose memory is too small for the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from tests.gpu.losses import losses_of

pytestmark = [
    pytest.mark.alone,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none here"),
]

WIDTH, BLOCKS, STEPS = 1024, 12, 6
DEVICE = 192 << 20
"""Bytes. Weights are 100 million bytes, as much again in gradients, and twice as much in AdamW's state."""


def model() -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for _ in range(BLOCKS)]
    return nn.Sequential(nn.Linear(32, WIDTH), *blocks, nn.Linear(WIDTH, 32))


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("early", [False, True], ids=["after", "in backward"])
@pytest.mark.parametrize("below", ["host", "nvme"])
def test_spilling_changes_nothing(precision: str | None, early: bool, below: str, tmp_path: Path) -> None:
    found = []
    lower = {"host": "1GiB"} if below == "host" else {"nvme": f"{tmp_path}:1GiB"}
    for memory in (None, cd.Memory(device=DEVICE, **lower)):
        ours = cd.shard(model(), memory=memory, mixed_precision=precision)
        found.append(losses_of(ours, cd.AdamW(ours.parameters(), lr=1e-3, in_backward=early), STEPS))
    assert found[0] == found[1]
    usage = cd.status(ours).tiers["device"]
    assert usage.peak <= DEVICE
    assert sum(link.bytes for link in cd.status(ours).spilling.links.values()) > 0


def test_the_budget_is_kept_and_the_allocator_does_not_grow() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    ours = cd.shard(model(), memory=cd.Memory(device=DEVICE, host="1GiB"))
    optimizer = cd.AdamW(ours.parameters())
    losses_of(ours, optimizer, STEPS)
    reserved = torch.cuda.memory_reserved()
    assert reserved - before <= DEVICE
    losses_of(ours, optimizer, STEPS)
    assert torch.cuda.memory_reserved() == reserved
