"""Copies of spans that wait to be written, in memory that is used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ciuic_dist.checkpoint.pieces import BoxedPiece

_ALIGNMENT: Final = 64
COPIES: Final = 4
"""Spans of a few pages each, most of which wait for the drive: fewer had updates wait for it, more changed little."""


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """The entries of a span, in ``room``."""

    entries: list[tuple[str, BoxedPiece]]
    room: Tensor


class Rooms:
    """Memory for a few copies, made as it is needed; for two threads, of which one makes copies."""

    def __init__(self) -> None:
        self._free = [torch.empty(0, dtype=torch.uint8)] * COPIES

    def copy(self, entries: Sequence[tuple[str, BoxedPiece]]) -> Copy | None:
        """None where too many are still waiting."""
        if not self._free:
            return None
        room = self._free.pop()
        nbytes = sum(_padded(piece.values.nbytes) for _, piece in entries)
        if nbytes > len(room):
            room = torch.empty(nbytes, dtype=torch.uint8)
        copied, used = [], 0
        for name, piece in entries:
            values = room[used : used + piece.values.nbytes].view(piece.values.dtype)
            copied.append((name, piece.moved_to(values.copy_(piece.values))))
            used += _padded(piece.values.nbytes)
        return Copy(copied, room)

    def give_back(self, copy: Copy) -> None:
        """It is written."""
        self._free.append(copy.room)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
