"""One process on one GPU whose memory is too small for the model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import ciuic_dist as cd

pytestmark = [
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


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        inputs = torch.randn(16, 32, generator=torch.Generator().manual_seed(step)).cuda()
        loss = (net(inputs) - inputs).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("early", [False, True], ids=["after", "in backward"])
@pytest.mark.parametrize("below", ["host", "nvme"])
def test_spilling_changes_nothing(precision: str | None, early: bool, below: str, tmp_path: Path) -> None:
    found = []
    for device in (None, DEVICE):
        lower = {"host": "1GiB"} if below == "host" else {"nvme": f"{tmp_path}:1GiB"}
        memory = None if device is None else cd.Memory(device=device, **lower)
        ours = cd.shard(copy.deepcopy(model()), memory=memory, mixed_precision=precision)
        found.append(train(ours, cd.AdamW(ours.parameters(), lr=1e-3, in_backward=early), range(STEPS)))
    assert found[0] == found[1]
    usage = cd.status(ours).tiers["device"]
    assert usage.peak <= DEVICE
    assert sum(link.bytes for link in cd.status(ours).spilling.links.values()) > 0


def test_the_budget_is_kept_and_the_allocator_does_not_grow() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    ours = cd.shard(model(), memory=cd.Memory(device=DEVICE, host="1GiB"))
    optimizer = cd.AdamW(ours.parameters())
    train(ours, optimizer, range(4))
    reserved = torch.cuda.memory_reserved()
    assert reserved - before <= DEVICE
    train(ours, optimizer, range(4))
    assert torch.cuda.memory_reserved() == reserved
