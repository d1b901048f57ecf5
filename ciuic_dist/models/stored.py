"""Values that lie somewhere in storage, and are read in the parts that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ciuic_dist.models.deferred import Recipe


class Source(Protocol):
    """Where the values of one tensor lie."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Tensor]:
        """Elements ``start`` to ``stop`` in order, 1-D, in parts of a size that suits the storage."""
        ...


class Stored:
    """The recipe of a module whose values lie in ``sources``; what isn't among them is made by ``rest``."""

    def __init__(self, sources: Mapping[Tensor, Source], rest: Recipe) -> None:
        self._sources = dict(sources)
        self._rest = rest

    def source(self, deferred: Tensor) -> Source | None:
        """Where the values of a tensor of the module lie."""
        return self._sources.get(deferred)

    def without(self, tensors: Collection[Tensor]) -> Stored:
        """The recipe of all others."""
        done = set(tensors)
        return Stored({tensor: at for tensor, at in self._sources.items() if tensor not in done}, self._rest)

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """See models.deferred.Recipe. Peak memory: one tensor, and what its source reads at once."""
        self._rest.replay(emit)
        for tensor, source in self._sources.items():
            emit(tensor, whole(source, tensor.dtype))


def whole(source: Source, dtype: torch.dtype) -> Tensor:
    """All that ``source`` has, as ``dtype``."""
    values = torch.empty(source.shape, dtype=dtype)
    read_into(values.view(-1), source, 0)
    return values


def read_into(target: Tensor, source: Source, start: int) -> None:
    """Fill ``target``, 1-D, with the elements of ``source`` from ``start`` on, in ``target``'s dtype."""
    done = 0
    for part in source.read(start, start + target.numel()):
        target[done : done + part.numel()].copy_(part)
        done += part.numel()


def equal(one: Source, other: Source) -> bool:
    """Whether two sources hold the same values."""
    numel = prod(one.shape)
    pairs = zip(one.read(0, numel), other.read(0, numel), strict=True)
    return one.shape == other.shape and all(torch.equal(left, right) for left, right in pairs)
