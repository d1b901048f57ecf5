"""Tensors without values among integers that have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ciuic_dist.estimate.phantom import phantom
from ciuic_dist.memory.live import LiveBytes


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda: torch.arange(4) + 1, [1, 2, 3, 4]),
        (lambda: torch.tensor([3, 5]), [3, 5]),
        (lambda: torch.full((2,), 7), [7, 7]),
        (lambda: torch.ones(2, dtype=torch.int64), [1, 1]),
        (lambda: torch.arange(3) > 1, [False, False, True]),
        (lambda: torch.ones(2, 2, dtype=torch.bool).tril()[0], [True, False]),
        (lambda: torch.arange(6).view(2, 3).sum(0), [3, 5, 7]),
        (lambda: torch.zeros_like(torch.arange(2)), [0, 0]),
        (lambda: torch.arange(2).new_full((2,), 9), [9, 9]),
        (lambda: torch.arange(2).to(torch.int32), [0, 1]),
    ],
)
def test_integers_keep_their_values(make: Callable[[], Tensor], values: list[int]) -> None:
    with phantom():
        made = make()
    assert not made.is_meta
    assert made.tolist() == values


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3),
        lambda: torch.full((2,), 1.5),
        lambda: torch.rand(2, dtype=torch.bfloat16),
        lambda: torch.arange(0, 2, 0.5),
        lambda: torch.arange(4).float(),
        lambda: torch.arange(4).to(torch.bfloat16),
        lambda: torch.zeros(2) + torch.arange(2),
        lambda: torch.zeros(9)[torch.arange(4)],
        lambda: nn.functional.embedding(torch.arange(4), torch.zeros(9, 2)),
        lambda: nn.Linear(3, 4)(torch.ones(2, 3)),
        lambda: torch.zeros(4, 9).argmax(-1),  # an integer, but of what has no values
        lambda: torch.zeros(4).to(torch.int64),
        lambda: torch.zeros(4) > 0,
    ],
)
def test_what_is_made_of_floats_has_none(make: Callable[[], Tensor]) -> None:
    with phantom():
        made = make()
    assert made.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nobody_sees_that_a_tensor_is_on_meta(dtype: torch.dtype) -> None:
    with phantom():
        made = torch.zeros(2, 3, dtype=dtype)
        assert not made.is_meta
        assert made.device == torch.device("cpu")
        assert torch.zeros(2, device=made.device).device.type == "cpu"
        assert (made.shape, made.dtype) == ((2, 3), dtype)
    assert made.is_meta
    assert made.device == torch.device("meta")


def test_what_has_values_keeps_them_when_something_without_is_written_into_it() -> None:
    counts = torch.tensor([4, 5])
    with phantom():
        assert counts.copy_(torch.zeros(2)) is counts
        counts.index_add_(0, torch.arange(2), torch.zeros(2).to(torch.int64))
        counts.add_(1)
    assert counts.tolist() == [5, 6]


def test_gradients_are_as_wide_as_what_they_belong_to() -> None:
    with phantom(), LiveBytes(phantom=True) as live:
        weight = torch.zeros(5, 3, requires_grad=True)
        nn.functional.embedding(torch.arange(4), weight).sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == (5, 3)
    assert live.now == 2 * 5 * 3 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_of_either_precision(dtype: torch.dtype) -> None:
    with phantom():
        left, right = torch.zeros(6, 16, dtype=dtype), torch.zeros(2, 16, 8, dtype=dtype)
        made = torch._grouped_mm(left, right, offs=torch.tensor([4, 6], dtype=torch.int32))
    assert (made.shape, made.dtype) == ((6, 8), dtype)


def test_only_what_is_phantom_is_counted_where_that_is_wished() -> None:
    with phantom(), LiveBytes() as live:
        made = torch.zeros(1000)
        assert live.now == 0
    with phantom(), LiveBytes(phantom=True) as live:
        other = made + 1
        assert live.now == other.nbytes == 4000
