"""What single operators cost, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ciuic_dist.estimate.operators import Cost, attention_flops, cost_of


class _Costs(TorchDispatchMode):
    """Of each operator that computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotations there
        self.found: list[Cost] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        cost = cost_of(func, args, kwargs or {}, out)
        if cost is not None:
            self.found.append(cost)
        return out


def costs(work: Callable[..., object], *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Cost]:
    """Of ``work`` on tensors of these shapes."""
    with FakeTensorMode():
        given = [torch.empty(shape, dtype=dtype) for shape in shapes]
        with _Costs() as meter:
            work(*given)
    found: list[Cost] = meter.found
    return found


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x.view(-1),
        lambda x: x[1:],
        lambda x: x.expand(3, 4, 8),
        lambda x: x.detach(),
        lambda x: x.split(2),
        torch.empty_like,
        lambda x: x.new_empty(3),
    ],
)
def test_views_and_memory_that_is_not_written_are_free(view: Callable[[Tensor], object]) -> None:
    assert costs(view, (4, 8)) == []


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_product_reads_both_and_writes_one(dtype: torch.dtype, size: int) -> None:
    [cost] = costs(torch.mm, (4, 8), (8, 16), dtype=dtype)
    assert cost == Cost(2 * 4 * 8 * 16, size * (4 * 8 + 8 * 16 + 4 * 16))


def test_batched_products_and_biases() -> None:
    assert costs(torch.bmm, (3, 4, 8), (3, 8, 16))[0].flops == 3 * 2 * 4 * 8 * 16
    [cost] = costs(nn.functional.linear, (4, 8), (16, 8), (16,))
    assert cost == Cost(2 * 4 * 8 * 16, 4 * (4 * 8 + 8 * 16 + 16 + 4 * 16))


def test_elementwise_work_is_bytes() -> None:
    assert costs(torch.add, (4, 8), (4, 8)) == [Cost(0.0, 4 * 3 * 32)]


def test_what_is_expanded_is_read_once() -> None:
    assert costs(lambda x: torch.add(x.expand(100, 8), 1), (1, 8)) == [Cost(0.0, 4 * (8 + 800))]


def test_an_embedding_does_not_read_its_table() -> None:
    def look_up(table: Tensor) -> Tensor:
        return nn.functional.embedding(torch.empty(5, dtype=torch.int64), table)

    assert costs(look_up, (1000, 8)) == [Cost(0.0, 2 * 4 * 5 * 8)]


@pytest.mark.parametrize("causal", [False, True])
def test_causal_attention_is_half_of_full(causal: bool) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)

    full = 2 * (2 * 2 * 4 * 64 * 64 * 32)
    [cost] = [cost for cost in costs(attend, *[(2, 4, 64, 32)] * 3) if cost.flops]
    assert cost.flops == full / (2 if causal else 1)
    query = torch.empty(2, 4, 64, 32, device="meta")
    assert attention_flops(query, query, query, causal=causal) == cost.flops


@pytest.mark.parametrize("causal", [False, True])
def test_so_it_is_backward(causal: bool) -> None:
    def learn(query: Tensor) -> None:
        query.requires_grad_()
        nn.functional.scaled_dot_product_attention(query, query, query, is_causal=causal).sum().backward()

    forward, backward = [cost.flops for cost in costs(learn, (2, 4, 64, 32)) if cost.flops]
    assert backward == 2.5 * forward


def test_attention_over_other_lengths_and_widths() -> None:
    query, key, value = (torch.empty(shape, device="meta") for shape in ((2, 8, 10, 6), (2, 2, 20, 6), (2, 2, 20, 4)))
    assert attention_flops(query, key, value, causal=False) == 2 * 2 * 8 * 10 * 20 * (6 + 4)
