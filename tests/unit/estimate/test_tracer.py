"""Counts on models small enough to count by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ciuic_dist.estimate.phantom import phantom
from ciuic_dist.estimate.tracer import profile
from ciuic_dist.planning.profile import Profile

BATCH, WIDTH = 8, 16
MATMUL = 2 * BATCH * WIDTH * WIDTH


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x))


class Model(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        total: Tensor = self.head(x).sum()
        return total


def measured(model: Model) -> Profile:
    ids = torch.zeros(BATCH, dtype=torch.int64)
    units = {f"block {index}": block for index, block in enumerate(model.blocks)}
    return profile(model, units, lambda: model(ids))


def test_flops_and_parameters_belong_to_their_units() -> None:
    with phantom():
        found = measured(Model(2))
    assert [(unit.name, unit.parameters) for unit in found.units] == [
        ("block 0", WIDTH * WIDTH),
        ("block 1", WIDTH * WIDTH),
        ("root", 32 * WIDTH + WIDTH * WIDTH),
    ]
    assert [(p.unit, p.backward, p.flops) for p in found.passes] == [
        (2, False, 0.0),
        (0, False, MATMUL),
        (1, False, MATMUL),
        (2, False, MATMUL),
        (2, True, 2 * MATMUL),
        (1, True, 2 * MATMUL),
        (0, True, 2 * MATMUL),
        (2, True, 0.0),
    ]


def test_saved_bytes_are_counted_once_and_parameters_not_at_all() -> None:
    with phantom():
        found = measured(Model(2))
    activation = BATCH * WIDTH * 4
    forward = [p for p in found.passes if not p.backward]
    assert [p.inputs for p in forward] == [0, activation, activation, 0]
    assert forward[1].saved == 2 * activation, "what the linear layer got, and what relu gave"
    assert forward[2].saved == activation, "relu's; the input is the block before's, which saved it"
    assert forward[3].saved == 0


def test_what_is_frozen_is_counted() -> None:
    with phantom():
        model = Model(2)
        model.embedding.requires_grad_(False)
        model.blocks[1].requires_grad_(False)
        found = measured(model)
    assert [unit.frozen for unit in found.units] == [0, WIDTH * WIDTH, 32 * WIDTH]
    assert [unit.trained for unit in found.units] == [WIDTH * WIDTH, 0, WIDTH * WIDTH]
    assert found.trained == 2 * WIDTH * WIDTH
    assert [(p.unit, p.flops) for p in found.passes if p.backward and p.flops] == [
        (2, 2 * MATMUL),
        (1, MATMUL),  # gradients flow through it
        (0, MATMUL),  # and end here
    ]


def test_a_weight_of_two_units_is_the_roots() -> None:
    with phantom():
        model = Model(2)
        model.blocks[1].inner.weight = model.blocks[0].inner.weight  # type: ignore[union-attr]
        found = measured(model)
    assert [unit.parameters for unit in found.units] == [0, 0, 32 * WIDTH + 2 * WIDTH * WIDTH]


def test_a_weight_that_a_unit_and_the_root_have_is_the_roots() -> None:
    """As it is in training."""
    with phantom():
        model = Model(2)
        model.head.weight = model.blocks[0].inner.weight  # type: ignore[union-attr, assignment]
        found = measured(model)
    assert [unit.parameters for unit in found.units] == [0, WIDTH * WIDTH, 32 * WIDTH + WIDTH * WIDTH]


class Borrower(Block):
    """Multiplies by another block's weight, which is no part of it."""

    def __init__(self, other: Block) -> None:
        super().__init__()
        self.others = [other]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.others[0].inner.weight


def test_weights_that_a_pass_reads_of_other_units_are_known() -> None:
    with phantom():
        model = Model(2)
        model.blocks.append(Borrower(model.blocks[0]))  # type: ignore[arg-type]
        model.blocks[1].inner.weight = model.head.weight  # type: ignore[union-attr]
        found = measured(model)
    root = found.root
    assert [(p.unit, p.reads) for p in found.passes if not p.backward] == [
        (root, ()),
        (0, ()),
        (1, (root,)),
        (2, (0,)),
        (root, ()),
    ]
    assert [(p.unit, p.reads) for p in found.passes if p.backward and p.flops] == [
        (root, ()),
        (2, (0,)),
        (1, (root,)),
        (0, ()),
    ]


def test_real_tensors_give_the_same_and_keep_no_trace_of_it() -> None:
    with phantom():
        fake = measured(Model(3))
    model = Model(3)
    assert measured(model) == fake
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_fused_attention_counts_as_two_products() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2, 4, 64, 32))

        def forward(self) -> Tensor:
            return nn.functional.scaled_dot_product_attention(self.weight, self.weight, self.weight).sum()

    with phantom():
        model = Attention()
        found = profile(model, {}, model)
    products = 2 * 2 * 4 * 64 * 64 * 32
    assert [p.flops for p in found.passes] == [2 * products, 5 * products]
