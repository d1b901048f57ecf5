"""What one micro-batch of a model costs, for any number of sequences, from two traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from ciuic_dist.estimate.tracer import profile
from ciuic_dist.planning.profile import Profile, extrapolate
from ciuic_dist.sharding.shard import PRECISIONS, exact_parameters
from ciuic_dist.sharding.units import UnitRule, find_units

Batch = Mapping[str, Tensor]


def causal_batch(length: int) -> Batch:
    """One sequence of ``length`` tokens for a language model."""
    ids = torch.zeros(1, length, dtype=torch.int64)
    return {"input_ids": ids, "labels": ids}


def profiles(
    model: nn.Module,
    batch: Batch,
    *,
    precision: str | None = None,
    units: UnitRule = None,
    fused_attention: bool = False,
) -> Callable[[int], Profile]:
    """The profile of so many sequences, or images, of which ``batch`` has one. Nothing is allocated or computed.

    ``model`` may be on meta. Its loss is its output's ``loss``, else its output's mean.
    """
    one, two = (_traced(model, batch, count, precision, units, fused_attention) for count in (1, 2))
    return cache(lambda count: extrapolate(one, two, count))


def _traced(
    model: nn.Module, batch: Batch, count: int, precision: str | None, units: UnitRule, fused_attention: bool
) -> Profile:
    dtype = PRECISIONS[precision]
    exact = exact_parameters(model)
    specs = {spec.name: spec.module for spec in find_units(model, units) if spec.name}
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = _Step(model, specs, fused_attention)
        held = {f"model.{name}": _fake(p, None if p in exact else dtype) for name, p in model.named_parameters()}
        held |= {f"model.{name}": _fake(buffer, None) for name, buffer in model.named_buffers()}
        inputs = {name: _repeated(value, count) for name, value in batch.items()}
        made: Profile = functional_call(step, held, kwargs=inputs)
    return made


class _Step(nn.Module):
    """A forward and backward, so that both find the parameters that stand in for the model's own."""

    def __init__(self, model: nn.Module, units: Mapping[str, nn.Module], fused_attention: bool) -> None:
        super().__init__()
        self.model = model
        self._units = units
        self._fused_attention = fused_attention

    def forward(self, **inputs: Any) -> Profile:
        def loss() -> Tensor:
            out = self.model(**inputs)
            value: Tensor = out.loss if hasattr(out, "loss") else out.float().mean()
            return value

        return profile(self.model, self._units, loss, fused_attention=self._fused_attention)


def _fake(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=_cast(tensor, dtype), device="cpu")
    return made.requires_grad_(tensor.requires_grad)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


def _repeated(value: Tensor, count: int) -> Tensor:
    """An input without values for ``count`` samples instead of one."""
    return torch.empty((count * value.shape[0], *value.shape[1:]), dtype=value.dtype)
