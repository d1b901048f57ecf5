"""AdamW, the default."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ciuic_dist.optim.paged import PagedOptimizer


class AdamW(PagedOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101) by torch's fused kernel."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(torch.optim.AdamW, params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
