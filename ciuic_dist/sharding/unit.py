"""A unit's states, and what memory each holds."""

from __future__ import annotations

from enum import Enum

from torch import nn

from ciuic_dist.sharding.flat import Flat


class UnitState(Enum):
    """Where a unit's parameters are."""

    SHARDED = "sharded"
    """Only shards are valid. Memory: the shards, and the full form where it is never released."""
    GATHERING = "gathering"
    """Peers' shards are on their way. Memory: shards and full form."""
    FULL = "full"
    """The model may compute with the unit. Memory: shards and full form."""


_TRANSITIONS = {
    (UnitState.SHARDED, UnitState.GATHERING),
    (UnitState.GATHERING, UnitState.FULL),
    (UnitState.GATHERING, UnitState.SHARDED),
    (UnitState.FULL, UnitState.SHARDED),
}


class Unit:
    """The modules gathered and released together, and their parameters."""

    def __init__(self, index: int, name: str, module: nn.Module, flats: list[Flat]) -> None:
        """``keep_full``: the full form stays in memory and is stale, not absent, while SHARDED.

        ``forwards`` counts calls whose backward hasn't come, ``backwards`` those whose backward is under way;
        ``reads`` are other units whose weights it uses; ``borrowed`` tells that it is one of those, ``detaches`` that
        it reads weights of its own without a gradient.
        """
        self.index = index
        self.name = name or "the root unit"
        self.module = module
        self.flats = flats
        self.is_root = not name
        self.keep_full = True
        self.state = UnitState.FULL
        self.forwards = 0
        self.backwards = 0
        self.reads: list[Unit] = []
        self.borrowed = False
        self.detaches = False

    @property
    def trainable(self) -> list[Flat]:
        """The flats that get gradients."""
        return [flat for flat in self.flats if flat.trainable]

    def backward_is_over(self) -> None:
        """The calls whose backward has run are no longer outstanding."""
        self.forwards = max(0, self.forwards - self.backwards)
        self.backwards = 0

    def move(self, state: UnitState) -> None:
        """Go to ``state``; raises RuntimeError where that is no step of the table."""
        if (self.state, state) not in _TRANSITIONS:
            raise RuntimeError(f"{self.name} can't go from {self.state.value} to {state.value}")
        self.state = state
