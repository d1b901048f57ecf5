"""What checkpoints of models that others shard have in common, under the names of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from ciuic_dist.checkpoint.entries import rank_zeros_entries
from ciuic_dist.checkpoint.saved import Saved

_HOW: Final = {"params", "fused", "foreach", "capturable", "differentiable"}
"""Of a group's settings those that say how to compute, not what."""


def small_entries_of(model: nn.Module, optimizer: Optimizer, extra: dict[str, Any]) -> dict[str, Any]:
    """All but parameters and their state, which every rank has alike."""
    groups = [{key: value for key, value in group.items() if key not in _HOW} for group in optimizer.param_groups]
    return dict(rank_zeros_entries(model, type(optimizer).__name__, groups, extra))


def state_of(saved: Saved, name: str) -> Iterator[tuple[str, str, TensorStorageMetadata]]:
    """The state that was saved of a parameter: entry, key, shape and dtype."""
    for key, entry in saved.states.get(name, {}).items():
        metadata = saved.entries[entry]
        if isinstance(metadata, TensorStorageMetadata):
            yield entry, key, metadata


def check_shapes(saved: Saved, wanted: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError where other tensors were saved than those that are ``wanted``."""
    there = {name: entry.size for name, entry in saved.entries.items() if isinstance(entry, TensorStorageMetadata)}
    odd = next((name for name in sorted({*wanted, *there}) if wanted.get(name) != there.get(name)), None)
    if odd is not None:
        was, here = (list(shapes[odd]) if odd in shapes else "absent" for shapes in (there, wanted))
        raise ValueError(f"{saved.path} is a checkpoint of another model: {odd} was saved as {was} and is {here} here")
