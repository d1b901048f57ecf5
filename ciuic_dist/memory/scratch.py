"""Memory for large values that are soon elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 64


class Scratch:
    """Serves again and again: of what is taken from the heap and freed a process keeps as much as fits nothing else."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def like(self, tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Tensors (1-D, without values) as long as these and of their dtypes, in place of those given before."""
        offsets = [0]
        for tensor in tensors:
            offsets.append(offsets[-1] + tensor.nbytes + -tensor.nbytes % _ALIGNMENT)
        if self._memory.numel() < offsets[-1] or self._memory.device != device:
            self._memory = torch.empty(offsets[-1], dtype=torch.uint8, device=device)
        return [
            self._memory[offset : offset + tensor.nbytes].view(tensor.dtype)
            for offset, tensor in zip(offsets, tensors, strict=False)
        ]
