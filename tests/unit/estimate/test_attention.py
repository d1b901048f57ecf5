"""The stand-in for fused attention: shapes, costs, gradients, and which attention it replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from ciuic_dist.estimate.attention import FusedAttention
from ciuic_dist.estimate.calls import Call, Clock
from ciuic_dist.estimate.operators import Cost
from ciuic_dist.estimate.phantom import phantom
from ciuic_dist.memory.live import LiveBytes

QUERY, KEY, VALUE = (2, 4, 64, 48), (2, 4, 32, 48), (2, 4, 32, 16)
"""Values are narrower than keys, as in multi-head latent attention."""
SQUARE = ((2, 4, 64, 16),) * 3

Charged = list[tuple[Cost, Call | None]]


def attended(
    *shapes: tuple[int, ...], everywhere: bool = True, dtype: torch.dtype = torch.float32, **kinds: Any
) -> tuple[list[Tensor], Tensor, Charged]:
    """Inputs after a backward, the output, and what was charged."""
    found: Charged = []
    with phantom():
        given = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in shapes or (QUERY, KEY, VALUE)]
        with FusedAttention(lambda cost, call: found.append((cost, call)), everywhere=everywhere):
            out = scaled_dot_product_attention(given[0], given[1], given[2], **kinds)
            out.sum().backward()
    return given, out, found


class Named(TorchDispatchMode):
    """Which operators are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def costs(charged: Charged) -> list[Cost]:
    return [cost for cost, _ in charged]


def test_shapes_are_those_of_attention() -> None:
    given, out, _ = attended(dtype=torch.bfloat16)
    assert (out.shape, out.dtype) == ((2, 4, 64, 16), torch.bfloat16)
    real = scaled_dot_product_attention(torch.zeros(QUERY), torch.zeros(KEY), torch.zeros(VALUE))
    assert real.shape == out.shape
    for tensor in given:
        assert tensor.grad is not None
        assert (tensor.grad.shape, tensor.grad.dtype) == (tensor.shape, tensor.dtype)


def test_on_the_cpu_it_is_laid_out_as_the_cpus_kernel_does() -> None:
    given = [torch.zeros(2, 64, 4, 16).transpose(1, 2) for _ in range(3)]
    with FusedAttention(lambda _cost, _call: None, everywhere=False):
        out = scaled_dot_product_attention(given[0], given[1], given[2])
    assert out.stride() == scaled_dot_product_attention(given[0], given[1], given[2]).stride()


def test_costs_of_values_narrower_than_keys() -> None:
    [forward, backward] = costs(attended()[2])
    inputs = 4 * 2 * 4 * (64 * 48 + 32 * 48 + 32 * 16)
    output = 4 * 2 * 4 * 64 * 16
    assert forward == Cost(2 * 2 * 4 * 64 * 32 * (48 + 16), inputs + output)
    assert backward == Cost(2.5 * forward.flops, 2 * inputs + 2 * output)


def test_bf16_moves_half_of_the_bytes_and_causal_is_half_of_the_work() -> None:
    plain, half, causal = (costs(attended(**kind)[2]) for kind in ({}, {"dtype": torch.bfloat16}, {"is_causal": True}))
    assert [cost.nbytes for cost in half] == [cost.nbytes / 2 for cost in plain]
    assert [cost.flops for cost in half] == [cost.flops for cost in plain]
    assert [cost.flops for cost in causal] == [cost.flops / 2 for cost in plain]


def test_its_calls_can_be_timed_on_the_cpu() -> None:
    calls = [call for _, call in attended(*SQUARE, everywhere=False, is_causal=True)[2] if call is not None]
    assert len(calls) == 2
    clock = Clock()
    clock.measure(calls)
    assert all(clock.seconds({call: 1}) > 0 for call in calls)


@pytest.mark.parametrize(
    ("shapes", "kinds"), [((QUERY, KEY, VALUE), {}), (SQUARE, {"dropout_p": 0.5}), (((4, 64, 16),) * 3, {})]
)
def test_where_the_cpu_has_no_kernel_only_gpus_have_one(shapes: tuple[Any, ...], kinds: dict[str, Any]) -> None:
    assert len(attended(*shapes, everywhere=True, **kinds)[2]) == 2
    assert attended(*shapes, everywhere=False, **kinds)[2] == []
    assert len(attended(*SQUARE, everywhere=False)[2]) == 2


WIDE = (2, 4, 64, 16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (torch.zeros(WIDE),) * 3,
        lambda: (torch.zeros(WIDE), torch.zeros(2, 1, 64, 16), torch.zeros(2, 1, 64, 16)),
        lambda: (torch.zeros(WIDE), *[torch.zeros(2, 1, 64, 16).expand(WIDE)] * 2),
        lambda: (torch.zeros(2, 4, 16, 64).transpose(2, 3), *[torch.zeros(WIDE)] * 2),
        lambda: (*[torch.zeros(WIDE)] * 3, torch.zeros(64, 64)),
        lambda: (*[torch.zeros(WIDE)] * 3, torch.zeros(2, 1, 64, 64)),
        lambda: (*[torch.zeros(WIDE)] * 3, torch.zeros(4, 64, 64)),
        lambda: (*[torch.zeros(WIDE)] * 3, torch.zeros(4, 64, 64).requires_grad_()[None]),
    ],
)
def test_the_cpus_kernel_takes_what_it_takes_of_real_tensors(make: Callable[[], tuple[Any, ...]]) -> None:
    with Named() as named:
        scaled_dot_product_attention(*make())
    found: Charged = []
    with phantom(), FusedAttention(lambda cost, call: found.append((cost, call)), everywhere=False):
        scaled_dot_product_attention(*make())
    assert len(found) == named.calls.count("aten._scaled_dot_product_flash_attention_for_cpu.default")


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_learned_bias_has_its_gradient(everywhere: bool) -> None:
    with phantom(), FusedAttention(lambda _cost, _call: None, everywhere=everywhere):
        given = [torch.zeros(WIDE, requires_grad=True) for _ in range(3)]
        bias = torch.zeros(1, 4, 64, 64, requires_grad=True)
        scaled_dot_product_attention(given[0], given[1], given[2], bias).sum().backward()
    assert bias.grad is not None
    assert bias.grad.shape == bias.shape


def test_everything_else_is_left_alone() -> None:
    found: Charged = []
    with FusedAttention(lambda cost, call: found.append((cost, call)), everywhere=True):
        assert torch.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert found == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_boolean_mask_is_kept_as_floats(dtype: torch.dtype) -> None:
    """As many bytes as attention really keeps, of its output, its sums, and the mask."""

    def kept() -> int:
        given = [torch.zeros((2, 4, 64, 16), dtype=dtype, requires_grad=True) for _ in range(3)]
        mask = torch.ones(2, 1, 64, 64, dtype=torch.bool)
        with LiveBytes(phantom=True) as live:
            out = scaled_dot_product_attention(given[0], given[1], given[2], attn_mask=mask)
        return live.now if out.requires_grad else 0

    real = kept()
    with phantom(), FusedAttention(lambda _cost, _call: None, everywhere=False):
        assert kept() == real
    width = dtype.itemsize
    assert real == 2 * 4 * 64 * 16 * width + 2 * 4 * 64 * 4 + 2 * 64 * 64 * width


def encode() -> Charged:
    found: Charged = []
    with phantom():
        encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        with FusedAttention(lambda cost, call: found.append((cost, call)), everywhere=False):
            encoder(torch.empty(3, 8, 16)).sum().backward()
    return found


def test_modules_of_torch_are_fused_as_well() -> None:
    """Which look the function up where modes don't reach."""
    forward, backward = costs(encode())
    assert forward.flops == 2 * 3 * 2 * 8 * 8 * (8 + 8)
    assert backward.flops == 2.5 * forward.flops


def test_torchs_own_is_there_again_afterwards() -> None:
    mode = FusedAttention(lambda _cost, _call: None, everywhere=True)
    with mode:
        assert functional.scaled_dot_product_attention is not scaled_dot_product_attention
    assert functional.scaled_dot_product_attention is scaled_dot_product_attention
    with pytest.raises(ValueError, match="broken"), mode:
        raise ValueError("broken")
    assert functional.scaled_dot_product_attention is scaled_dot_product_attention
