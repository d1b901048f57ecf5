"""What one operator costs: floating-point operations, and bytes from and to memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten

_CPU_ATTENTION: Final = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
"""Flash attention on the CPU counts like the one on GPUs."""

_CAUSAL: Final = {
    _aten._scaled_dot_product_flash_attention_for_cpu: 4,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: 7,
}
"""Which argument says that what comes later isn't looked at, which halves the work."""

_LOOKUPS: Final = {_aten.embedding, _aten.index_select, _aten.gather, _aten.index}
"""Of their first argument they read no more than they return."""

_FREE: Final = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}
"""They leave memory as it is."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operator."""

    flops: float
    """Of matrix products and attention, 0 for all others."""
    nbytes: float
    """That it reads and writes."""


def cost_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Cost | None:
    """What ``func`` has cost that gave ``out``; None where it computed nothing, as views do."""
    packet = func._overloadpacket
    if func.is_view or packet in _FREE or func.namespace == "prim":
        return None
    results = sum(map(_moved, _tensors([out])))
    if packet in _LOOKUPS:
        return Cost(0.0, 2.0 * results)
    moved = float(results + sum(map(_moved, _tensors([*args, *kwargs.values()]))))
    flops = _flops(packet, args, kwargs, out)
    return Cost(flops, moved) if flops or moved else None


def attention_flops(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> float:
    """Of the forward: two products, with half of the pairs where ``causal``."""
    *many, rows, width = query.shape
    products = 2.0 * prod(many) * rows * key.shape[-2] * (width + value.shape[-1])
    return products / 2 if causal else products


def _flops(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    if packet is _aten._grouped_mm:
        return 2.0 * float(args[0].numel() * args[1].shape[-1])
    counted = _CPU_ATTENTION.get(packet, packet)
    if counted not in flop_registry:
        return 0.0
    flops = float(flop_registry[counted](*args, **kwargs, out_val=out))
    return flops / 2 if _is_causal(packet, args, kwargs) else flops


def _is_causal(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    at = _CAUSAL.get(packet)
    return at is not None and bool(args[at] if len(args) > at else kwargs.get("is_causal"))


def _moved(tensor: Tensor) -> int:
    """Bytes; what is expanded is read once."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
