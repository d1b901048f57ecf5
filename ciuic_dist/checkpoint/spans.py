"""What of a checkpoint is large: values that an update changes, read a span at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from ciuic_dist.checkpoint.names import MODEL, STATE
from ciuic_dist.checkpoint.pieces import BoxedPiece
from ciuic_dist.optim.parts import Part, is_elementwise
from ciuic_dist.sharding.flat import Flat


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Of a flat, with the state that ``owner`` has for its ``part``, if any."""

    flat: Flat
    low: int
    high: int
    part: Part | None
    owner: Optimizer | None

    @property
    def is_at_hand(self) -> bool:
        """Whether another thread may read it while the model computes: all of it stays where it is, on the CPU."""
        in_columns = self.part is not None and self.part.state_in_columns
        flat = self.flat
        return flat.home is None and flat.paging is None and flat.device.type == "cpu" and not in_columns

    @property
    def is_paged(self) -> bool:
        """Whether its values lie in pages, each kind in one."""
        return self.flat.paging is not None

    def overlaps(self, low: int, high: int) -> bool:
        """Whether any of its elements lies there."""
        return self.low < high and low < self.high

    @contextmanager
    def opened(self, *, state_is_open: bool = False) -> Iterator[list[tuple[str, BoxedPiece]]]:
        """Its entries, to be read while the context lasts; views where values needn't be put together."""
        state = nullcontext() if state_is_open else self._state_opened()
        with self.flat.opened_master(self.low, self.high, dirty=False) as master, state:
            yield [*self._masters(master), *self._states()]

    @contextmanager
    def _state_opened(self) -> Iterator[None]:
        if self.part is None or self.owner is None:
            yield
            return
        with self.part.open_state(self.owner, dirty=False):
            yield

    def _masters(self, master: Tensor) -> Iterator[tuple[str, BoxedPiece]]:
        for place in self.flat.pieces(self.low, self.high):
            slot = self.flat.layout.slots[place.index]
            values = master[place.shard_offset - self.low :][: place.numel]
            yield f"{MODEL}{slot.name}", BoxedPiece(slot.shape, place.start, values)

    def _states(self) -> Iterator[tuple[str, BoxedPiece]]:
        if self.part is None or self.owner is None:
            return
        for piece in self.part.pieces:
            slot = self.flat.layout.slots[piece.place.index]
            for key, value in self.owner.state.get(piece, {}).items():
                if is_elementwise(value, piece):
                    yield f"{STATE}{slot.name}.{key}", BoxedPiece(slot.shape, piece.place.start, value)
