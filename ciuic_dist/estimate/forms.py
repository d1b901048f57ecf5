"""All of a tensor but its values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Form:
    """Shape, strides and dtype; ``make`` gives a tensor like it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """That of ``tensor``."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)

    def make(self) -> Tensor:
        """A tensor of this form without values, which is learned nothing through."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)
