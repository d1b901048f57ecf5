"""The stand-in for fused attention: shapes, costs and gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from ciuic_dist.estimate.attention import FusedAttention
from ciuic_dist.estimate.operators import Cost

QUERY, KEY, VALUE = (2, 4, 64, 48), (2, 4, 32, 48), (2, 4, 32, 16)
"""Values are narrower than keys, as in multi-head latent attention."""


def attended(*, causal: bool = False, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, list[Cost]]:
    """Inputs after a backward, the output, and what was charged."""
    found: list[Cost] = []
    with FakeTensorMode():
        given = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in (QUERY, KEY, VALUE)]
        with FusedAttention(found.append):
            out = scaled_dot_product_attention(given[0], given[1], given[2], is_causal=causal)
            out.sum().backward()
    return given, out, found


def test_shapes_are_those_of_attention() -> None:
    given, out, _ = attended(dtype=torch.bfloat16)
    assert (out.shape, out.dtype) == ((2, 4, 64, 16), torch.bfloat16)
    real = scaled_dot_product_attention(torch.zeros(QUERY), torch.zeros(KEY), torch.zeros(VALUE))
    assert real.shape == out.shape
    for tensor in given:
        assert tensor.grad is not None
        assert (tensor.grad.shape, tensor.grad.dtype) == (tensor.shape, tensor.dtype)


def test_costs_of_values_narrower_than_keys() -> None:
    _, _, [forward, backward] = attended()
    inputs = 4 * 2 * 4 * (64 * 48 + 32 * 48 + 32 * 16)
    output = 4 * 2 * 4 * 64 * 16
    assert forward == Cost(2 * 2 * 4 * 64 * 32 * (48 + 16), inputs + output)
    assert backward == Cost(2.5 * forward.flops, 2 * inputs + 2 * output)


def test_bf16_moves_half_of_the_bytes_and_causal_is_half_of_the_work() -> None:
    plain, half, causal = (attended(**kind)[2] for kind in ({}, {"dtype": torch.bfloat16}, {"causal": True}))
    assert [cost.nbytes for cost in half] == [cost.nbytes / 2 for cost in plain]
    assert [cost.flops for cost in half] == [cost.flops for cost in plain]
    assert [cost.flops for cost in causal] == [cost.flops / 2 for cost in plain]


def test_everything_else_is_left_alone() -> None:
    found: list[Cost] = []
    with FusedAttention(found.append):
        assert torch.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert found == []
