"""What one micro-batch of a model costs, for any number of sequences, from two traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from ciuic_dist.comm.together import together
from ciuic_dist.estimate.calls import Clock, Untraceable
from ciuic_dist.estimate.phantom import phantom
from ciuic_dist.estimate.tracer import Work, trace
from ciuic_dist.planning.profile import Pass, Profile, extrapolate
from ciuic_dist.sharding.shard import PRECISIONS, exact_parameters
from ciuic_dist.sharding.units import UnitRule, find_units

Batch = Mapping[str, Tensor] | Sequence[Tensor] | Tensor
"""What a forward is given, by name or by place."""


def given(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Arguments by place, and by name."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return ((batch,) if isinstance(batch, Tensor) else tuple(batch)), {}


def causal_batch(length: int) -> dict[str, Tensor]:
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
    most: int = 2,
    clock: Clock | None = None,
) -> Callable[[int], Profile]:
    """The profile of so many samples, of which ``batch`` has one. Nothing of the model is allocated or computed.

    ``model`` may be on meta. Its loss is its output's ``loss``, else its output's mean. ``most``: samples that it will
    get at a time at most; from these and half of these all others are extrapolated.
    ``clock``: times every operator that the model calls on this machine, and units that are alike as a whole, which
    allocates one; without a clock, passes have no ``seconds``.

    Raises Untraceable where the model's code raises; with a ``clock``, which makes it collective, on all ranks.
    """
    counts = (max(most // 2, 1), max(most, 2))
    few, many = (traced(model, batch, count, precision, units, fused_attention, clock) for count in counts)
    return cache(lambda count: extrapolate(few, many, counts, count))


def traced(
    model: nn.Module,
    batch: Batch,
    count: int,
    precision: str | None = None,
    units: UnitRule = None,
    fused_attention: bool = False,
    clock: Clock | None = None,
) -> Profile:
    """The profile of exactly ``count`` samples; all else as in `profiles`, which gives others than it has traced."""
    with nullcontext() if clock is None else together():
        try:
            profile, works = _run(model, batch, count, PRECISIONS[precision], units, fused_attention)
        except Exception as error:
            raise Untraceable(f"{type(error).__name__}: {error}") from error
    return profile if clock is None else _timed(profile, works, clock)


def _run(
    model: nn.Module, batch: Batch, count: int, dtype: torch.dtype | None, units: UnitRule, fused_attention: bool
) -> tuple[Profile, tuple[Work, ...]]:
    exact = exact_parameters(model)
    specs = {spec.name: spec.module for spec in find_units(model, units) if spec.name}
    buffers = {name: _valued(buffer) for name, buffer in model.named_buffers()}
    sample = tree_map(_valued, given(batch))
    with phantom():
        step = _Step(model, specs, fused_attention)
        held = {f"model.{name}": _absent(p, None if p in exact else dtype) for name, p in model.named_parameters()}
        held |= {f"model.{name}": _absent(buffer, None) for name, buffer in buffers.items()}
        args, kwargs = tree_map(lambda value: _repeated(value, count, dtype), sample)
        found: tuple[Profile, tuple[Work, ...]] = functional_call(step, held, args, kwargs)
    return found


def _timed(profile: Profile, works: Sequence[Work], clock: Clock) -> Profile:
    wholes = {work.name: work.unit for work in works if work.unit}
    clock.measure((call for work in works for call in work.calls), wholes)
    passes = (replace(p, seconds=_seconds(work, p, clock)) for p, work in zip(profile.passes, works, strict=True))
    return Profile(profile.units, tuple(passes))


def _seconds(work: Work, made: Pass, clock: Clock) -> float:
    """At the least what its operators take, one by one; modules, views and Python around them take time too.

    Where these were seen to be quicker than they were alone, the machine was busy when both were timed.
    """
    operators = clock.seconds(work.calls)
    if not work.unit:
        return operators
    busy = max(1.0, clock.alone(work.calls) / operators) if operators else 1.0
    return max(operators, clock.whole(work.name, backward=made.backward) / busy)


class _Step(nn.Module):
    """A forward and backward, so that both find the parameters that stand in for the model's own."""

    def __init__(self, model: nn.Module, units: Mapping[str, nn.Module], fused_attention: bool) -> None:
        super().__init__()
        self.model = model
        self._units = units
        self._fused_attention = fused_attention

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Profile, tuple[Work, ...]]:
        def loss() -> Tensor:
            return _loss(self.model(*args, **kwargs))

        return trace(self.model, self._units, loss, fused_attention=self._fused_attention)


def _loss(out: Any) -> Tensor:
    """What a model gives as its loss, else the mean of all that gradients can flow through. Raises ValueError."""
    loss = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not leaves:
        raise ValueError("no gradient flows through what the model gives: are all of its parameters frozen?")
    total: Tensor = sum((leaf.float().mean() for leaf in leaves[1:]), leaves[0].float().mean())
    return total


def _valued(tensor: Tensor) -> Tensor:
    """Indices and masks have values, zeros where their own aren't at hand. Not for phantoms, which have none."""
    if tensor.is_floating_point() or tensor.device.type == "cpu":
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")


def _absent(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=_cast(tensor, dtype), device="meta")
    return made.requires_grad_(tensor.requires_grad)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


def _repeated(value: Tensor, count: int, dtype: torch.dtype | None) -> Tensor:
    """An input for ``count`` samples instead of one, in the precision that the model computes in.

    Integers keep their values, such as the tokens that images take the place of. One number is for all samples.
    """
    if not value.is_floating_point():
        return value.repeat(count, *[1] * (value.dim() - 1)) if value.dim() else value
    shape = (count * value.shape[0], *value.shape[1:]) if value.dim() else ()
    return torch.empty(shape, dtype=_cast(value, dtype))
