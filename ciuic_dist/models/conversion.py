"""Which tensors of published files make up which tensors of a model, as transformers has it.

transformers renames and converts what files hold (experts that lie one by one become one tensor, say). Its own
renamings and conversions are used here, but for one tensor at a time, when its values are asked for.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ciuic_dist.models.stored import Source, whole

Parts = dict[str, list[Source]]


@dataclass(frozen=True, slots=True)
class Matched:
    """``sources`` by the names in the model's state dict; ``unused`` are names in files for which it has no place."""

    sources: dict[str, Source]
    unused: list[str]


def match(model: nn.Module, stored: Mapping[str, Source]) -> Matched:
    """Find the model's tensors among ``stored``. ``model`` is one of transformers, its tensors may be on meta.

    Raises whatever transformers' conversions raise where they can't be used like this.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    own, prefix = model.state_dict(keep_vars=True), model.base_model_prefix
    matched = Matched({}, [])
    groups: dict[str, _Group] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, own)  # type: ignore[arg-type]
        if name not in own and key in own:
            name, pattern = rename_source_key(key, [], [], prefix, own)  # type: ignore[arg-type]
        if name not in own:
            matched.unused.append(key)
        elif pattern is None:
            matched.sources.setdefault(name, stored[key])
        else:
            group = groups.setdefault(name, _Group(model, name, by_pattern[pattern], {}))
            group.parts.setdefault(pattern, []).append(stored[key])
    for group in groups.values():
        matched.sources.update(group.targets())
    return matched


class _Group:
    """Tensors of files that are converted together. ``parts`` are they, by the converter's pattern for them."""

    def __init__(self, model: nn.Module, name: str, converter: Any, parts: Parts) -> None:
        self.parts = parts
        self._model = weakref.proxy(model)  # recipes live as long as their model
        self._name = name
        self._converter = copy.deepcopy(converter)
        self._dtype = model.state_dict(keep_vars=True)[name].dtype

    def targets(self) -> dict[str, Converted]:
        """What comes out, by its name in the model; tried on meta, so nothing is read."""
        made = self._run({pattern: [_meta(part) for part in parts] for pattern, parts in self.parts.items()})
        by_rows = self._stacks()
        return {name: Converted(self, name, tuple(value.shape), by_rows) for name, value in made.items()}

    def convert(self, name: str, rows: slice = slice(None)) -> Tensor:
        """The values of ``name``, those of some of its rows where each row is made of parts of its own."""
        chosen = {pattern: [whole(part, self._dtype) for part in parts[rows]] for pattern, parts in self.parts.items()}
        return self._run(chosen)[name]

    def _run(self, tensors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        for pattern, values in tensors.items():
            for value in values:
                self._converter.add_tensor(self._name, pattern, pattern, value)
        made = self._converter.convert(self._name, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _stacks(self) -> bool:
        """Whether it stacks its parts, and leaves the new dimension alone after that."""
        first, *others = self._converter.operations
        stacks = type(first).__name__ == "MergeModulelist" and first.dim == 0
        return stacks and all(type(other).__name__ == "Concatenate" and other.dim > 0 for other in others)


@dataclass(frozen=True, slots=True)
class Converted:
    """A tensor of the model that has to be made of several, or of a part of one."""

    group: _Group
    name: str
    shape: tuple[int, ...]
    by_rows: bool

    def read(self, start: int, stop: int) -> Iterator[Tensor]:
        """See Source; row by row where that can be, else all is converted for any part."""
        if not self.by_rows:
            yield self.group.convert(self.name).reshape(-1)[start:stop]
            return
        numel = prod(self.shape[1:])
        for row in range(start // numel, -(-stop // numel)):
            values = self.group.convert(self.name, slice(row, row + 1)).reshape(-1)
            yield values[max(start - row * numel, 0) : stop - row * numel]


def _meta(part: Source) -> Tensor:
    return torch.empty(part.shape, device="meta")
