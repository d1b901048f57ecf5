"""AdamW, the default."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ciuic_dist.optim.paged import PagedOptimizer, normalised


class AdamW(PagedOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    By torch's fused kernel, unless some parameter is complex, which that kernel doesn't know.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        in_backward: bool = False,
        state_dtype: str | None = None,
    ) -> None:
        """``in_backward``, ``state_dtype``: see ``PagedOptimizer``."""
        groups = normalised(params)
        fused = all(p.is_floating_point() for group in groups for p in group["params"])
        super().__init__(
            torch.optim.AdamW,
            groups,
            in_backward=in_backward,
            state_dtype=state_dtype,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=fused,
        )
