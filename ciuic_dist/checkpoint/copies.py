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
    """Memory for a few copies, of ``most`` bytes in all, made as it is needed.

    One thread makes copies, meanwhile another gives them back.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._free = [torch.empty(0, dtype=torch.uint8)] * COPIES

    def copy(self, entries: Sequence[tuple[str, BoxedPiece]]) -> Copy | None:
        """None where too many are still waiting, or too much."""
        if not self._free:
            return None
        room = self._free.pop()  # the other thread may add one from here on
        nbytes = sum(_padded(piece.values.nbytes) for _, piece in entries)
        if nbytes > len(room):
            if nbytes - len(room) > self._left:
                self._free.append(room)
                return None
            self._left -= nbytes - len(room)
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
