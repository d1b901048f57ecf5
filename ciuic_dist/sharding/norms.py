"""Norms of gradients, taken in an order that no budget changes."""

from __future__ import annotations

import torch
from torch import Tensor

_ROW = 128
"""Elements whose norm is taken at once. Shards and spans end where rows do."""


def power_sum(gradient: Tensor, start: int, norm_type: float) -> Tensor:
    """The sum of the elements' ``norm_type``-th powers (the largest one if that is infinite), 0-dim, fp64.

    ``gradient``, 1-D, begins at element ``start`` of its shard.
    """
    head = min(-start % _ROW, gradient.numel())
    body = head + (gradient.numel() - head) // _ROW * _ROW
    parts = (gradient[:head].view(1, -1), gradient[head:body].view(-1, _ROW), gradient[body:].view(1, -1))
    norms = torch.cat([torch.linalg.vector_norm(part, norm_type, dim=1).double() for part in parts if part.numel()])
    return norms.max() if norm_type == float("inf") else norms.pow(norm_type).sum()
