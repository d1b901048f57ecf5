"""The gradient norm of a sharded model, and clipping to it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ciuic_dist.comm import groups
from ciuic_dist.comm.collectives import all_reduce
from ciuic_dist.sharding.registry import sharded_of


@torch.no_grad()
def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale the gradients so that their norm over all ranks is at most ``max_norm``.

    Returns the norm before, 0-dim, as ``torch.nn.utils.clip_grad_norm_`` does for a model that isn't sharded.
    Raises RuntimeError on a norm that isn't finite if ``error_if_nonfinite``, and before the last backward of a step.
    """
    sharded = sharded_of(model)
    if sharded.updating:
        raise RuntimeError("with in_backward=True gradients are used up in the backward: make the optimizer without it")
    sharded.refuse_unreduced()
    largest = norm_type == float("inf")
    sums = [power_sum for flat in sharded.flats for power_sum in flat.power_sums(norm_type)]
    own = torch.stack([*sums, torch.zeros((), dtype=torch.float64, device=groups.device())]).cpu()
    total = own.max() if largest else own.sum()
    if sharded.stage > 0:
        total = total if sharded.mesh.replica == 0 else torch.zeros_like(total)  # the others have the same
        all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    norm = (total if largest else total.pow(1.0 / norm_type)).float()
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(f"the gradient norm is {norm.item()}: the gradients are not finite")
    scale = float((max_norm / (norm + 1e-6)).clamp(max=1.0))
    if scale != 1.0:
        for flat in sharded.flats:
            flat.scale_gradient(scale)
    return norm
