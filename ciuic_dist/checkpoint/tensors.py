"""The tensors of a checkpoint one by one, in one process, whatever world wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ciuic_dist.checkpoint.saved import Saved

_PREFIXES = ("model.", "", "module.")
"""What stands before the model's own names: ours, and what others that save through torch are used to."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    saved: Saved

    def read(self, start: int, stop: int) -> Iterator[Tensor]:
        """Elements ``start`` to ``stop``, 1-D, while the whole tensor is in memory: checkpoints cut it as they like."""
        values: Tensor = self.saved.read({self.name: torch.empty(self.shape, dtype=self.dtype)})[self.name]
        yield values.view(-1)[start:stop]


def saved_tensors(path: Path, model: nn.Module) -> dict[str, SavedTensor]:
    """The tensors of ``model``'s state dict that the checkpoint at ``path`` holds, by their names in the model.

    Of names that are tied one at least is there. Raises FileNotFoundError where there is no checkpoint, ValueError
    where it is of another model.
    """
    saved = Saved(path)
    names = _aliases(model)
    found = [_found(names, saved.entries, prefix) for prefix in _PREFIXES]
    best = max(found, key=len)
    lacking = [aliases[0] for aliases in names.values() if not set(aliases) & set(best)]
    if lacking:
        raise ValueError(f"{path} is a checkpoint of another model: it lacks {lacking[0]} ({len(lacking)} such in all)")
    for tensor, aliases in names.items():
        for name in set(aliases) & set(best):
            if best[name][1].size != tensor.shape:
                was, now = list(best[name][1].size), list(tensor.shape)
                raise ValueError(f"{path} is a checkpoint of another model: {name} is {was} there and {now} here")
    return {
        name: SavedTensor(saved_as, tuple(entry.size), entry.properties.dtype, saved)
        for name, (saved_as, entry) in best.items()
    }


def _aliases(model: nn.Module) -> dict[Tensor, list[str]]:
    """The names in the state dict of each tensor there."""
    names: dict[Tensor, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            names.setdefault(value, []).append(name)
    return names


def _found(
    names: dict[Tensor, list[str]], saved: dict[str, Any], prefix: str
) -> dict[str, tuple[str, TensorStorageMetadata]]:
    every = (name for aliases in names.values() for name in aliases)
    entries = ((name, prefix + name, saved.get(prefix + name)) for name in every)
    return {name: (key, entry) for name, key, entry in entries if isinstance(entry, TensorStorageMetadata)}
