"""Optimizers of sharded models, in one process: which are taken, and what they take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.optim.elementwise import check_elementwise
from ciuic_dist.sharding.registry import sharded_of


class LARS(torch.optim.Optimizer):
    """Steps by the ratio of norms: looks at a parameter as a whole."""

    def __init__(self, params: Iterable[Any], lr: float | Tensor = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * (group["lr"] * p.norm() / p.grad.norm()))


class Complex(nn.Module):
    """A linear map of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.weight.t()).abs()


@pytest.mark.parametrize("options", [{"lr": 1e-7}, {"lr": torch.tensor(1e-7)}, {}])
def test_an_optimizer_that_looks_at_whole_parameters_is_refused_at_any_learning_rate(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="looks at a parameter as a whole"):
        check_elementwise(LARS, options)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "RMSprop", "Adagrad", "NAdam", "Adamax", "RAdam", "Adadelta"])
@pytest.mark.parametrize("lr", [1e-9, 1e-3, 3.0])
def test_elementwise_optimizers_are_taken(name: str, lr: float) -> None:
    check_elementwise(getattr(torch.optim, name), {"lr": lr})


@pytest.mark.parametrize("option", ["capturable", "fused", "foreach"])
def test_the_kernel_does_not_matter(option: str) -> None:
    check_elementwise(torch.optim.AdamW, {option: True})


def test_complex_parameters_train_as_in_torch() -> None:
    torch.manual_seed(0)
    model, plain = Complex(), Complex()
    plain.load_state_dict(model.state_dict())
    cd.shard(model)
    for m, optimizer in ((plain, torch.optim.AdamW(plain.parameters())), (model, cd.AdamW(model.parameters()))):
        for _ in range(2):
            m(torch.ones(2, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(model.weight.detach(), plain.weight.detach())


def test_real_parameters_are_fused() -> None:
    model = cd.shard(nn.Linear(2, 2))
    assert cd.AdamW(p for p in model.parameters()).param_groups[0]["fused"] is True


@pytest.mark.parametrize("state_dtype", ["8", "int8", 8, torch.uint8])
def test_a_dtype_of_state_that_there_is_not_is_refused(state_dtype: Any) -> None:
    model = cd.shard(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="state_dtype must be None or '8bit'"):
        cd.AdamW(model.parameters(), state_dtype=state_dtype)
    with pytest.raises(ValueError, match="state_dtype must be None or '8bit'"):
        cd.paged(torch.optim.SGD, model.parameters(), state_dtype=state_dtype)


def test_a_group_of_another_sharded_model_trains_with_it() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    for model in (first, second):
        cd.shard(model)
    optimizer = cd.AdamW(first.parameters(), lr=0.1)
    optimizer.add_param_group({"params": second.parameters(), "lr": 0.2})
    before = second.weight.detach().clone()
    (first(torch.ones(2, 8)) + second(torch.ones(2, 8))).square().mean().backward()
    optimizer.step()
    assert not torch.equal(second.weight, before)
    assert optimizer in sharded_of(second).optimizers


def test_a_refused_group_leaves_nothing_behind() -> None:
    model = cd.shard(nn.Linear(8, 8))
    optimizer = cd.AdamW(model.parameters())
    for refused in (nn.Linear(8, 8), model):
        with pytest.raises(ValueError, match=r"not a sharded model's|more than one parameter group"):
            optimizer.add_param_group({"params": refused.parameters()})
    assert len(optimizer.param_groups) == len(optimizer.inner.param_groups) == 1
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()


def test_small_sums_of_squares_beside_large_ones_are_not_rounded_to_zero() -> None:
    model = nn.Linear(64, 1, bias=False)
    cd.shard(model)
    before = model.weight.detach().clone()
    optimizer = cd.paged(torch.optim.Adagrad, model.parameters(), lr=1e-3, state_dtype="8bit")
    gradients = torch.full((64,), 1e-4)
    gradients[0] = 1.0
    for _ in range(20):
        model(gradients).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = (before - model.weight.detach()).flatten()
    assert moved[1:].amax() < 1.1 * moved[0]  # where a sum is zero each step is as large as the first
