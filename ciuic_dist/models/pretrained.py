"""Values that come from a checkpoint instead of from an initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ciuic_dist.models.replay import kept_random_state

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Pretrained:
    """The recipe of a module whose weights transformers reads from a hub id or a folder.

    They are read when they are asked for, not before; then the whole model is on the host, because
    transformers may rename, split and merge what files hold. Weights that the files lack are drawn
    after ``seed``.
    """

    def __init__(self, module: nn.Module, path: str, config: PretrainedConfig, seed: int) -> None:
        self._tensors = _by_name(module)
        self._path = path
        self._config = config
        self._seed = seed

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """See models.deferred.Recipe."""
        values = self._read()
        for name, tensor in self._tensors.items():
            emit(tensor, values.pop(name).detach().to(tensor.dtype))

    def _read(self) -> dict[str, Tensor]:
        from transformers import AutoModelForCausalLM

        with kept_random_state():
            torch.default_generator.manual_seed(self._seed)
            source = AutoModelForCausalLM.from_pretrained(self._path, config=self._config, dtype=torch.float32)
        return _by_name(source)


def _by_name(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
