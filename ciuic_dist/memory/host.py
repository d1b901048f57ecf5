"""Large private buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from ciuic_dist.memory.mapping import HUGE_PAGE, private


def allocate(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised 1-D tensor; on the host large ones lie on huge pages, untouched until first use."""
    nbytes = numel * dtype.itemsize
    if device.type != "cpu" or nbytes < HUGE_PAGE:
        return torch.empty(numel, dtype=dtype, device=device)
    return private(nbytes).view(dtype)
