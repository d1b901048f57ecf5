"""Bytes over time, by what they hold."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Levels:
    """Step functions of time that change together."""

    moments: tuple[float, ...]
    """Seconds, ascending."""
    nbytes: Mapping[str, tuple[int, ...]]
    """By kind: so many from each moment on."""

    @property
    def total(self) -> tuple[int, ...]:
        """All kinds together, from each moment on."""
        return tuple(map(sum, zip(*self.nbytes.values(), strict=True)))

    def cut(self, start: float, end: float) -> Levels:
        """What lies between, counted from ``start``."""
        inside = self._at((start, *(moment for moment in self.moments if start < moment < end)))
        return Levels(tuple(moment - start for moment in inside.moments), inside.nbytes)

    def beside(self, other: Levels) -> Levels:
        """These and others, of other kinds, that begin at the same moment."""
        moments = tuple(sorted({*self.moments, *other.moments}))
        return Levels(moments, {**self._at(moments).nbytes, **other._at(moments).nbytes})

    def _at(self, moments: tuple[float, ...]) -> Levels:
        indices = [bisect_right(self.moments, moment) - 1 for moment in moments]
        return Levels(moments, {kind: tuple(nbytes[i] for i in indices) for kind, nbytes in self.nbytes.items()})
