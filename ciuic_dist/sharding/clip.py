"""The gradient norm of a sharded model, and clipping to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ciuic_dist.comm import groups
from ciuic_dist.comm.collectives import all_reduce
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.registry import sharded_of


@torch.no_grad()
def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale the gradients so that their norm over all ranks is at most ``max_norm``.

    Returns the norm before, 0-dim, as ``torch.nn.utils.clip_grad_norm_`` does for a model that isn't sharded.
    Raises RuntimeError on a norm that isn't finite if ``error_if_nonfinite``.
    """
    sharded = sharded_of(model)
    if sharded.updating:
        raise RuntimeError("with in_backward=True gradients are used up in the backward: make the optimizer without it")
    largest = norm_type == float("inf")
    rows = [norms for flat in sharded.flats for norms in _row_norms(flat, norm_type)]
    own = torch.cat([*rows, torch.zeros(1, dtype=torch.float64, device=groups.device())]).cpu()
    total = own.max() if largest else own.pow(norm_type).sum()
    if sharded.stage > 0:
        all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    norm = (total if largest else total.pow(1.0 / norm_type)).float()
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(f"the gradient norm is {norm.item()}: the gradients are not finite")
    scale = float((max_norm / (norm + 1e-6)).clamp(max=1.0))
    if scale != 1.0:
        for flat in sharded.flats:
            flat.scale_gradient(scale)
    return norm


_ROW = 128
"""Elements whose norm is taken at once. Shards and spans end where rows do, so a budget changes nothing."""


def _row_norms(flat: Flat, norm_type: float) -> Iterator[Tensor]:
    """The norms of the rows of this rank's gradients, and of what pieces begin and end with; 1-D, fp64."""
    for gradient, start in flat.gradients():
        head = min(-start % _ROW, gradient.numel())
        body = head + (gradient.numel() - head) // _ROW * _ROW
        for part in (gradient[:head].view(1, -1), gradient[head:body].view(-1, _ROW), gradient[body:].view(1, -1)):
            if part.numel():
                yield torch.linalg.vector_norm(part, norm_type, dim=1).double()
