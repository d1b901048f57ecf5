"""Blocks that are alike are run once; the profile is that of running them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ciuic_dist.estimate.phantom import phantom
from ciuic_dist.estimate.tracer import profile
from ciuic_dist.estimate.twins import Twins
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.footprint import transient
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Choice

WIDTH, LENGTH = 32, 16
ACTIVATION = 2 * LENGTH * WIDTH * 4

Activation = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Attention and a feed-forward, as transformers have them."""

    def __init__(self, index: int = 0, wide: int = 2, activation: Activation = torch.relu) -> None:
        super().__init__()
        self.layer_idx = index
        self.wide, self.activation = wide, activation
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self._count = [0]  # a list, which says nothing of how it computes

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        self._count[0] += 1
        heads = [part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1)]
        mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2) * scale
        if mask is not None:
            x = x * mask
        for _ in range(self.wide - 1):
            x = x + self.dropout(self.down(self.activation(self.up(x))))
        return x


class Model(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 64, bias=False)

    def forward(self, ids: Tensor, *, order: tuple[int, ...] | None = None) -> Tensor:
        x = self.embedding(ids)
        mask = torch.ones(1, device=x.device)
        for index in order or range(len(self.blocks)):
            x = self.blocks[index](x, mask=mask)
        total: Tensor = self.head(x).float().mean()
        return total


def measured(make: Callable[[], Model], *, fused: bool = False, **call: Any) -> tuple[Profile, Model]:
    with phantom():
        model = make()
        ids = torch.zeros(2, LENGTH, dtype=torch.int64)
        units = {f"block {index}": block for index, block in enumerate(model.blocks)}
        return profile(model, units, lambda: model(ids, **call), fused_attention=fused), model


def runs(model: Model) -> list[int]:
    """How often each block's own forward ran."""
    return [block._count[0] for block in model.blocks if isinstance(block, Block)]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Profile, Model]]:
    """Like `measured`, without twins."""

    def run(make: Callable[[], Model], **call: Any) -> tuple[Profile, Model]:
        with monkeypatch.context() as patch:
            patch.setattr(Twins, "_stand_in", lambda _twins, _unit, forward, _structure: forward)
            return measured(make, **call)

    return run


Alone = Callable[..., tuple[Profile, Model]]


def same(found: Profile, every: Profile) -> None:
    """Equal; but the backward of the last block, whose gradient comes from the root, may leave one more or less."""
    assert found.units == every.units
    backwards = [index for index, p in enumerate(every.passes) if p.backward and p.unit != every.root]
    for index, (ours, theirs) in enumerate(zip(found.passes, every.passes, strict=True)):
        if index == backwards[0]:
            assert abs(ours.net - theirs.net) <= ACTIVATION
            assert replace(ours, net=0) == replace(theirs, net=0)
        else:
            assert ours == theirs
    for way in Way:
        choice = Choice(0, 1, 1, (way,) * every.root, below=way is Way.OFFLOAD)
        assert transient(found, choice) == transient(every, choice)


def equal() -> Model:
    return Model([Block(index) for index in range(6)])


@pytest.mark.parametrize("fused", [False, True])
def test_six_equal_blocks_cost_what_they_cost_when_all_are_run(alone: Alone, fused: bool) -> None:
    found, model = measured(equal, fused=fused)
    every, whole = alone(equal, fused=fused)
    assert runs(whole) == [1] * 6
    assert sum(runs(model)) < 6
    assert runs(model)[2:] == [0] * 4, "the first two are told apart by whether their input was saved before"
    same(found, every)
    assert any(p.above for p in found.passes)
    assert any(p.net < 0 for p in found.passes)
    assert all(p.saved > p.inputs > 0 for p in found.passes if p.unit < 6 and not p.backward and p.unit)


@pytest.mark.parametrize(
    "odd",
    [
        lambda: Block(3, wide=4),
        lambda: Block(3, activation=nn.functional.gelu),
    ],
)
def test_blocks_that_differ_in_an_attribute_are_no_twins(alone: Alone, odd: Callable[[], Block]) -> None:
    def make() -> Model:
        return Model([*(Block(index) for index in range(3)), odd(), *(Block(index) for index in (4, 5))])

    found, model = measured(make)
    assert runs(model)[3] == 1
    assert runs(model)[5] == 0
    same(found, alone(make)[0])


def test_blocks_that_differ_in_a_stride_are_no_twins() -> None:
    class Convolution(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.inner = nn.Conv2d(4, 4, 3, stride=stride, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.inner(x))

    with phantom():
        model = nn.Sequential(*(Convolution(stride) for stride in (1, 1, 1, 2)))
        image = torch.empty(1, 4, 8, 8, requires_grad=True)
        found = profile(model, {str(index): unit for index, unit in enumerate(model)}, lambda: model(image).sum())
    forward = {p.unit: p.flops for p in found.passes if not p.backward}
    assert forward[2] == forward[1] == 4 * forward[3] > 0


def test_blocks_that_differ_in_their_parameters_are_no_twins(alone: Alone) -> None:
    def make() -> Model:
        model = equal()
        model.blocks[4].up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        return model

    found, model = measured(make)
    assert runs(model)[4] == 1
    same(found, alone(make)[0])


def test_frozen_blocks_are_no_twins_of_others(alone: Alone) -> None:
    def make() -> Model:
        model = equal()
        model.blocks[4].requires_grad_(requires_grad=False)
        return model

    same(measured(make)[0], alone(make)[0])


def test_a_block_that_is_run_twice_costs_twice(alone: Alone) -> None:
    order = (0, 1, 2, 3, 0, 3)

    def make() -> Model:
        return Model([Block(index) for index in range(4)])

    found, every = measured(make, order=order)[0], alone(make, order=order)[0]
    assert [(p.unit, p.backward, p.flops) for p in found.passes] == [
        (p.unit, p.backward, p.flops) for p in every.passes
    ]


def test_what_all_blocks_are_given_beside_is_computed_with_in_each(alone: Alone) -> None:
    """A weight's gradient is complete before the first block's backward has reached its other input."""

    class Biased(Block):
        def forward(self, x: Tensor, scale: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
            out: Tensor = super().forward(x, mask=mask) + self.up(scale).mean()
            return out

    class Shared(Model):
        def __init__(self) -> None:
            super().__init__([Biased(index) for index in range(4)])
            self.scale = nn.Parameter(torch.zeros(1, WIDTH))

        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            x: Tensor = self.embedding(ids)
            for block in self.blocks:
                x = block(x, self.scale)
            return x.mean()

    found, every = measured(Shared)[0], alone(Shared)[0]
    assert runs(measured(Shared)[1])[-1] == 0
    for passes in (found.passes, every.passes):
        assert len({p.flops for p in passes if p.backward and p.unit != found.root}) == 1
    assert sum(p.flops for p in found.passes) == sum(p.flops for p in every.passes)


def test_checkpointed_blocks_are_run() -> None:
    def make() -> Model:
        model = equal()
        for block in model.blocks:
            block.gradient_checkpointing = True  # type: ignore[assignment]  # a plain attribute of the module
        return model

    assert runs(measured(make)[1]) == [1] * 6


def test_forwards_are_given_back() -> None:
    own = Block.forward
    _, model = measured(equal)
    assert all("forward" not in vars(block) for block in model.blocks)
    assert all(type(block).forward is own for block in model.blocks)


def test_a_forward_of_ones_own_is_given_back_too() -> None:
    made: list[Any] = []

    def make() -> Model:
        model = equal()
        for block in model.blocks:
            mine = block.forward
            block.forward = lambda *args, mine=mine, **kwargs: mine(*args, **kwargs)
            made.append(block.forward)
        return model

    _, model = measured(make)
    assert [block.forward for block in model.blocks] == made


def test_they_are_given_back_when_the_loss_raises() -> None:
    with phantom():
        model = equal()
        units = {f"block {index}": block for index, block in enumerate(model.blocks)}

        def fails() -> Tensor:
            model(torch.zeros(2, LENGTH, dtype=torch.int64))
            raise RuntimeError("no loss today")

        with pytest.raises(RuntimeError, match="no loss today"):
            profile(model, units, fails)
    assert all("forward" not in vars(block) for block in model.blocks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
