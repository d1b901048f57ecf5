"""A model and a store for its activations."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn
from torch.nn import functional

from ciuic_dist.memory.activations import ActivationStore
from ciuic_dist.memory.tier import Tier
from ciuic_dist.memory.transfer import Transfers

PAGE, SLOTS = 4096, 2048
READS = "host->device"


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        rows, length, width = inputs.shape
        heads = self.qkv(self.before(inputs)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        inputs = inputs + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        return torch.add(inputs, self.mlp(self.between(inputs)))


def store_of(
    tier: Tier, transfers: Transfers, model: nn.Module | None = None, least_bytes: int = 1, under_way: int = 1 << 20
) -> ActivationStore:
    ours = {p.untyped_storage()._cdata for p in model.parameters()} if model is not None else set()

    def keep(tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in ours

    return ActivationStore(
        [tier],
        transfers,
        page_bytes=tier.page_bytes,
        least_bytes=least_bytes,
        bytes_under_way=under_way,
        device=torch.device("cpu"),
        keep=keep,
    )


def loss_of(model: nn.ModuleList, store: ActivationStore | None, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    value = torch.randn(2, 32, 64)
    for index, block in enumerate(model):
        if store is None:
            value = block(value)
        else:
            with store.saving(index):
                value = block(value)
    return value.square().mean()


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert len(found) == len(list(model.parameters()))
    return found


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def assert_empty(store: ActivationStore, tier: Tier) -> None:
    gc.collect()
    store.settle()
    tier.pool.check_empty()


def reads(transfers: Transfers) -> int:
    return transfers.stats.links[READS].count if READS in transfers.stats.links else 0
