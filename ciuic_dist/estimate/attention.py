"""Attention as GPUs compute it, in one kernel that never writes the scores to memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ciuic_dist.estimate.operators import Cost, attention_flops

_BACKWARD = 2.5
"""Products of the backward to those of the forward: the scores again, and four that give gradients."""


class FusedAttention(TorchFunctionMode):
    """Stands in for ``scaled_dot_product_attention``: the sizes are right, and what it costs; values there are none.

    On the CPU torch has no such kernel for heads whose values are narrower than their keys.
    """

    def __init__(self, charge: Callable[[Cost], None]) -> None:
        super().__init__()
        self._charge = charge

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace attention, leave everything else."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> Tensor:
        flops = attention_flops(query, key, value, causal=is_causal)
        made: Tensor = _Attention.apply(self._charge, flops, query, key, value)  # type: ignore[no-untyped-call]
        return made


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, charge: Callable[[Cost], None], flops: float, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.charge, ctx.flops = charge, flops
        charge(Cost(flops, sum(tensor.nbytes for tensor in (query, key, value, out))))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, _ = ctx.saved_tensors
        made = [torch.empty_like(tensor) for tensor in (query, key, value)]
        moved = sum(tensor.nbytes for tensor in (query, key, value, out, *gradients, *made))
        ctx.charge(Cost(_BACKWARD * ctx.flops, moved))
        return None, None, *made
