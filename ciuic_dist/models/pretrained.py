"""Values that come from a checkpoint instead of from an initialisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Pretrained:
    """The recipe of a module whose weights transformers reads from a hub id or a folder.

    They are read when they are asked for, not before; then the whole model is on the host, because
    transformers may rename, split and merge what files hold.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        self._tensors = _by_name(module)
        self._path = path

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """See models.deferred.Recipe."""
        from transformers import AutoModelForCausalLM

        source = AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.float32)
        values = _by_name(source)
        del source
        for name, tensor in self._tensors.items():
            emit(tensor, values.pop(name).detach().to(tensor.dtype))


def _by_name(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
