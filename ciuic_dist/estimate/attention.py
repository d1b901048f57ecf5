"""Attention in one kernel that never writes the scores to memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ciuic_dist.estimate.calls import Call
from ciuic_dist.estimate.operators import Cost, attention_flops

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_PRODUCTS = 2.5
"""Products of the backward to those of the forward: the scores again, and four that give gradients."""

Charge = Callable[[Cost, Call | None], None]


class FusedAttention(TorchFunctionMode):
    """Stands in for ``scaled_dot_product_attention``: the sizes are right, and what it costs; values there are none.

    On meta torch would take it apart. ``everywhere``: as GPUs do; else only where the CPU has such a kernel too.
    """

    def __init__(self, charge: Charge, *, everywhere: bool) -> None:
        super().__init__()
        self._charge = charge
        self._everywhere = everywhere

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace attention, leave everything else."""
        replaced: Callable[..., Any] = self._attend if func is scaled_dot_product_attention else func
        return replaced(*args, **(kwargs or {}))

    def __enter__(self) -> Self:
        """Modules of torch's own look the function up where modes don't reach."""
        functional.scaled_dot_product_attention = self._attend  # type: ignore[assignment]  # its own has every argument
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        functional.scaled_dot_product_attention = scaled_dot_product_attention
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **others: Any,
    ) -> Tensor:
        grouped = bool(others.get("enable_gqa"))
        if not (self._everywhere or (not dropout_p and _cpu_takes(query, key, value, attn_mask, grouped=grouped))):
            return scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **others)
        if attn_mask is not None and attn_mask.dtype is torch.bool:  # added up as floats, and kept
            attn_mask = query.new_empty(attn_mask.shape)
        given = (self._charge, not self._everywhere, is_causal, attn_mask, query, key, value)
        made: Tensor = _Attention.apply(*given)  # type: ignore[no-untyped-call]
        return made


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        charge: Charge,
        like_query: bool,
        causal: bool,
        mask: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        out = torch.empty_like(query) if like_query else _rows_first(query, value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums, mask)
        ctx.charge, ctx.causal = charge, causal
        ctx.flops = attention_flops(query, key, value, causal=causal)
        cost = Cost(ctx.flops, sum(tensor.nbytes for tensor in (query, key, value, out)))
        charge(cost, Call.of(_FORWARD, (query, key, value, 0.0, causal), {"attn_mask": mask}))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums, mask = ctx.saved_tensors
        made = [torch.empty_like(tensor) for tensor in (query, key, value)]
        moved = sum(tensor.nbytes for tensor in (query, key, value, out, *gradients, *made))
        given = (*gradients, query, key, value, out, sums, 0.0, ctx.causal)
        ctx.charge(Cost(_PRODUCTS * ctx.flops, moved), Call.of(_BACKWARD, given, {"attn_mask": mask}))
        return None, None, None, torch.empty_like(mask) if ctx.needs_input_grad[3] else None, *made


def _cpu_takes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, grouped: bool) -> bool:
    """Whether the CPU's kernel does, which gives masks no gradient, as a learned bias needs it."""
    given = (query, key, value)
    return (
        query.dim() == 4
        and query.shape[-1] == value.shape[-1]
        and (grouped or len({tensor.shape[:2] for tensor in given}) == 1)
        and all(tensor.stride(-1) == 1 for tensor in given)
        and (mask is None or (mask.dim() in (2, 4) and not mask.requires_grad))
    )


def _rows_first(query: Tensor, width: int) -> Tensor:
    """As kernels of GPUs lay it out: the heads of a row side by side."""
    *many, heads, rows, _ = query.shape
    return query.new_empty((*many, rows, heads, width)).transpose(-3, -2)
