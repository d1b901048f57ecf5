"""One process on one GPU."""

from __future__ import annotations

import copy

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


def model() -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)) for _ in range(4)]
    return nn.Sequential(nn.Linear(32, 256), *blocks, nn.Linear(256, 32))


@pytest.mark.parametrize("stage", [0, 3])
def test_training_is_plain_training(stage: int) -> None:
    plain = model()
    ours = cd.shard(copy.deepcopy(plain), stage=stage)
    plain.cuda()
    expected = losses_of(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=True))
    assert losses_of(ours, cd.AdamW(ours.parameters(), lr=1e-3)) == expected


def test_bf16_learns_and_reports() -> None:
    ours = cd.shard(model(), mixed_precision="bf16")
    found = losses_of(ours, cd.AdamW(ours.parameters(), lr=1e-3))
    assert found[-1] < found[0]
    assert cd.status(ours).tiers["device"].used > 0


def test_memory_does_not_grow_after_the_first_step() -> None:
    ours = cd.shard(model())
    optimizer = cd.AdamW(ours.parameters())
    losses_of(ours, optimizer)
    reserved = torch.cuda.memory_reserved()
    losses_of(ours, optimizer)
    assert torch.cuda.memory_reserved() == reserved
