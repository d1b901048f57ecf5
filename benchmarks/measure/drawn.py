"""Values for models too large to be initialised on the CPU, where only time and memory matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_SCALE = 0.02


class Drawn:
    """A Recipe of a transformers model: matrices are drawn where there are numbers quickest, not as the model would."""

    def __init__(self, model: nn.Module, where: torch.device) -> None:
        self._model = model
        self._where = where

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """See Recipe.replay; but ``real`` is on the device."""
        for name, parameter in self._model.named_parameters():
            real = torch.empty(parameter.shape, dtype=parameter.dtype, device=self._where)
            if parameter.dim() > 1:
                real.normal_(std=_SCALE)
            else:
                real.fill_(0.0 if name.endswith("bias") else 1.0)
            emit(parameter, real)
        for module in self._model.modules():
            absent = {name: buffer for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta}
            known = self._known(module) if absent else {}
            for name, buffer in absent.items():
                emit(buffer, known[name] if name in known else torch.zeros(buffer.shape, dtype=buffer.dtype))

    def _known(self, module: nn.Module) -> dict[str, Tensor]:
        """Rotary frequencies, which follow from a config; what else models have, such as biases of routers, is zero."""
        return dict(type(module)(module.config).named_buffers()) if hasattr(module, "config") else {}
