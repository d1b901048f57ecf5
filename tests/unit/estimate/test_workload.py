"""Profiles of any number of sequences of a model on meta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ciuic_dist.config import ModelConfig
from ciuic_dist.estimate.twins import Twins
from ciuic_dist.estimate.workload import causal_batch, profiles, traced
from ciuic_dist.models.build import build

WIDTH, LENGTH = 16, 8


class Model(nn.Module):
    """Two blocks without biases, on meta."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
            self.shift = nn.Buffer(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shift.to(x.dtype)
        for block in self.blocks:
            x = torch.relu(block(x))
        return x


BATCH = {"x": torch.empty(1, LENGTH, WIDTH, device="meta")}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_products_grow_with_the_sequences(count: int) -> None:
    found = profiles(Model(), BATCH)(count)
    assert [unit.parameters for unit in found.units] == [WIDTH * WIDTH] * 2 + [0]
    forward = [p for p in found.passes if not p.backward and p.unit < 2]
    rows = count * LENGTH
    assert [p.flops for p in forward] == [2 * rows * WIDTH * WIDTH] * 2
    assert [p.streamed for p in forward] == [4 * (2 * rows * WIDTH + WIDTH * WIDTH)] * 2, "weights are read once"


def test_bf16_halves_the_bytes_of_products_and_leaves_their_flops() -> None:
    plain, half = (profiles(Model(), {"x": BATCH["x"].to(dtype)}, precision=name)(3) for name, dtype in KINDS)
    assert sum(p.streamed for p in plain.passes) > 0
    for ours, theirs in zip(half.passes, plain.passes, strict=True):
        assert (ours.flops, ours.streamed) == (theirs.flops, theirs.streamed / 2)


@pytest.mark.parametrize(("place", "last"), [("cpu", WIDTH - 1), ("meta", 0)])
def test_a_buffer_of_integers_has_values(place: str, last: int) -> None:
    """Its own where there are any."""
    seen = []

    class Indexed(Model):
        def __init__(self) -> None:
            super().__init__()
            self.order = nn.Buffer(torch.arange(WIDTH, device=place))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(int(self.order[-1]))
            return super().forward(x[..., self.order])

    plain, indexed = (profiles(model, BATCH)(3) for model in (Model(), Indexed()))
    assert set(seen) == {last}
    assert sum(p.flops for p in indexed.passes) == sum(p.flops for p in plain.passes) > 0


@pytest.mark.parametrize(
    "output",
    [
        lambda out: {"logits": out},
        lambda out: {"logits": out, "loss": None},
        lambda out: (out, None, torch.zeros(3)),
        lambda out: [{"hidden": (out,)}],
    ],
)
def test_outputs_without_a_loss_are_averaged(output: Callable[[Tensor], object]) -> None:
    class Other(Model):
        def forward(self, x: Tensor) -> Any:
            return output(super().forward(x))

    plain, other = (profiles(model, BATCH)(3) for model in (Model(), Other()))
    assert [(p.unit, p.backward, p.flops) for p in other.passes] == [
        (p.unit, p.backward, p.flops) for p in plain.passes
    ]


def test_integers_of_the_batch_have_their_values_and_single_numbers_stay() -> None:
    class Chosen(Model):
        def forward(self, x: Tensor, rows: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            seen.append((rows.tolist(), scale.shape))
            return super().forward(x) * scale

    seen: list[object] = []
    traced(Chosen(), {**BATCH, "rows": torch.tensor([[3, 1]]), "scale": torch.tensor(0.5)}, 2)
    traced(Chosen(), {**BATCH, "rows": torch.ones(1, 2, dtype=torch.int64, device="meta"), "scale": torch.tensor(2)}, 1)
    assert seen == [([[3, 1], [3, 1]], ()), ([[0, 0]], ())]


def test_a_loss_by_name_is_what_the_backward_begins_with() -> None:
    class WithLoss(Model):
        def forward(self, x: Tensor) -> Any:
            first = torch.relu(self.blocks[0](x))
            return {"loss": first.mean(), "logits": self.blocks[1](first)}

    backward = [p.unit for p in profiles(WithLoss(), BATCH)(1).passes if p.backward and p.flops]
    assert backward == [0], "nothing of the second block's output"


def test_what_is_all_frozen_can_not_be_trained() -> None:
    with pytest.raises(ValueError, match="no gradient flows through what the model gives: are all of its parameters"):
        profiles(Model().requires_grad_(False), BATCH)


KINDS = ((None, torch.float32), ("bf16", torch.bfloat16))


def test_the_model_stays_as_it_was() -> None:
    model = Model()
    profiles(model, BATCH, precision="bf16")
    assert all(p.device.type == "meta" and p.dtype is torch.float32 and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


def test_a_language_model_is_measured_with_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(ModelConfig("llama"), vocab_size=None, seed=0)
    found = profiles(model, causal_batch(32))(1)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    products = 2 * 32 * sum(p.numel() for p in model.parameters() if p.dim() == 2)
    forward = sum(p.flops for p in found.passes if not p.backward)
    embedding = model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    assert forward == pytest.approx(products - 2 * 32 * embedding, rel=0.1), "and attention"
    assert forward > products - 2 * 32 * embedding
    monkeypatch.setattr(Twins, "_stand_in", lambda _twins, _unit, forward, _structure: forward)
    every = profiles(model, causal_batch(32))(1)
    assert [(p.unit, p.flops, p.saved, p.above) for p in found.passes] == [
        (p.unit, p.flops, p.saved, p.above) for p in every.passes
    ]


def test_a_model_with_experts_costs_the_same_each_time() -> None:
    """What was freed during the trace may have had the address of what is saved later."""
    made = [
        profiles(build(ModelConfig("deepseek"), vocab_size=256, seed=0), causal_batch(128), most=6)(6) for _ in range(3)
    ]
    assert made[0] == made[1] == made[2]
