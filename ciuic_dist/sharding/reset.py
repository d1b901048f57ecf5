"""Values for a model that was built on the meta device without a recorded recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ciuic_dist.comm.groups import gather_objects, rank


class ResetRecipe:
    """Asks each module that owns parameters to reset them, one module at a time, in the modules' order."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError, before anything is allocated, naming a module that can't reset itself."""
        self._model = model
        for name, module in model.named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if any(tensor.is_meta for tensor in own) and not hasattr(module, "reset_parameters"):
                raise ValueError(
                    f"{name or 'the model'} ({type(module).__name__}) is on the meta device and has no "
                    f"reset_parameters(): give it one, or build the model on the CPU"
                )

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """Call ``emit(meta, real)`` for every parameter and buffer that is on the meta device.

        Random numbers are rank 0's; the other ranks' generators stay as they are.
        """
        state = gather_objects(torch.get_rng_state() if rank() == 0 else None)[0]
        assert state is not None
        with torch.random.fork_rng(devices=[], enabled=rank() != 0):
            torch.set_rng_state(state)
            self._reset(emit)

    def _reset(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        emitted: set[int] = set()
        for module in self._model.modules():
            own = {**module._parameters, **module._buffers}
            if not any(tensor is not None and tensor.is_meta for tensor in own.values()):
                continue
            real = copy.copy(module)
            real._parameters = {name: _empty(p) for name, p in module._parameters.items()}  # type: ignore[misc]
            real._buffers = {name: _empty(b) for name, b in module._buffers.items()}
            real.reset_parameters()  # type: ignore[operator]
            for name, tensor in own.items():
                if tensor is not None and tensor.is_meta and id(tensor) not in emitted:
                    emitted.add(id(tensor))
                    emit(tensor, real._parameters[name] if name in real._parameters else real._buffers[name])  # type: ignore[arg-type]


def _empty(tensor: Tensor | None) -> Tensor | None:
    """Memory to reset: the real tensors of a module that is partly on meta keep their values."""
    if tensor is None:
        return None
    empty = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
