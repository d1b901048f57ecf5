"""Notices writes to parameters that neither the optimizer nor the other ranks would see."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ciuic_dist.sharding.flat import Flat


class VersionWatch:
    """Compares autograd's version counters of the parameters with what they were after the last update."""

    def __init__(self, flats: Sequence[Flat]) -> None:
        self._flats = flats
        self._seen = self._now()

    def check(self) -> None:
        """Raise RuntimeError naming a parameter that something else than an optimizer of this library wrote to."""
        now = self._now()
        if now != self._seen:
            names = [slot.name for flat in self._flats for slot in flat.layout.slots]
            changed = next(n for n, old, new in zip(names, self._seen, now, strict=True) if old != new)
            raise RuntimeError(
                f"{changed} was written to since it was sharded, which the other ranks and the optimizer don't see; "
                f"change parameters before cd.shard, or through cd.load"
            )

    def count_update(self) -> None:
        """The parameters were changed by right: graphs that saved them are outdated, and what is seen is new."""
        torch.autograd.graph.increment_version([p for flat in self._flats for p in flat.parameters])
        self._seen = self._now()

    def count_early_update(self, flat: Flat) -> None:
        """The same for one flat in the backward: what still reads its old values there becomes autograd's error."""
        torch.autograd.graph.increment_version(flat.parameters)
        self._seen = self._now()

    def _now(self) -> list[int]:
        return [p._version for flat in self._flats for p in flat.parameters]
