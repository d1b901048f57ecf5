"""Which sizes of a model's inputs are known to fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import inf, prod

Sizes = tuple[tuple[int, ...], ...]
"""The shapes of the tensors that a forward is given, in order."""


class KnownSizes:
    """Sizes that have been met; what is no larger in any dimension needs no more memory, it is supposed.

    A forward without gradients needs no more than one with gradients of the same sizes.
    """

    def __init__(self) -> None:
        self.slack = 1.0
        """By which factor sizes may be larger than they have been met."""
        self._met: dict[bool, list[Sizes]] = {True: [], False: []}

    def any(self, *, gradients: bool) -> bool:
        """Whether any were met in forwards of this kind."""
        return bool(self._met[gradients])

    def cover(self, sizes: Sizes, *, gradients: bool) -> bool:
        """Whether a forward of these is known to fit."""
        known = self._met[True] if gradients else [*self._met[True], *self._met[False]]
        return any(_growth(met, sizes) <= self.slack for met in known)

    def add(self, sizes: Sizes, *, gradients: bool) -> None:
        """A forward of these sizes was made room for, and has taken it."""
        larger = [met for met in self._met[gradients] if _growth(sizes, met) > 1]
        self._met[gradients] = [*larger, sizes]

    def forget(self) -> None:
        """Nothing is known to fit."""
        self._met = {True: [], False: []}


def _growth(before: Sizes, now: Sizes) -> float:
    """By which factor the tensor grows that grows most; infinite where it is of another kind, or was not there."""
    return max((_ratio(old, new) for old, new in zip_longest(before, now) if new is not None), default=1.0)


def _ratio(before: Sequence[int] | None, now: Sequence[int]) -> float:
    if before is None or len(before) != len(now):
        return inf
    return prod(max(1.0, new / max(old, 1)) for old, new in zip(before, now, strict=True))
