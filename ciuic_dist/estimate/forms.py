"""All of a tensor but its values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Form:
    """Shape, strides and dtype; ``make`` and ``filled`` give a tensor like it."""

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

    def filled(self) -> Tensor:
        """The same with values of no consequence: between -1 and 1, integers 0."""
        tensor = self.make()
        if not self.dtype.is_floating_point:
            return tensor.zero_()
        # All of its storage: expanded tensors can't be written to.
        torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,)).uniform_(-1, 1)
        return tensor
