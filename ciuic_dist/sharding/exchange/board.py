"""What each rank tells the others of its shards that come and go, in shared memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.unit import Unit

GATHERED, RELEASED = 0, 1
"""Rows of ``Board.counts``."""

_NUMBERS = 2
"""In turn: a rank that is ahead writes the next number while others still read the last, and gets no further."""


class BoardLayout:
    """Two counts a unit, two numbers to agree on, the numbers of each flat's frames; the same on every rank."""

    def __init__(self, units: Sequence[Unit], frame_bytes: int) -> None:
        """``frame_bytes``: of each frame, where there are any."""
        self.units = len(units)
        self.frames: dict[int, slice] = {}
        self.said = slice(2 * self.units, 2 * self.units + _NUMBERS)
        end = self.said.stop
        for flat in (flat for unit in units for flat in unit.flats if flat.spills):
            frames = -(-flat.full_bytes // (flat.layout.world * frame_bytes))
            self.frames[id(flat)] = slice(end, end + frames)
            end += frames
        self.nbytes = end * torch.int64.itemsize


class Board:
    """One rank's, at the start of its mailbox; zero at first."""

    def __init__(self, layout: BoardLayout, mailbox: Tensor) -> None:
        self._layout = layout
        self._numbers = mailbox[: layout.nbytes].view(torch.int64)
        self.counts = self._numbers[: 2 * layout.units].view(2, layout.units)
        """How often the rank has gathered each unit, and released it."""
        self._said = self._numbers[layout.said]

    def say(self, turn: int, number: int) -> None:
        """The rank's part of the agreement number ``turn``."""
        self._said[turn % _NUMBERS] = number

    def said(self, turn: int) -> int:
        """What the rank said there."""
        return int(self._said[turn % _NUMBERS])

    def write(self, flat: Flat, frames: Sequence[int]) -> None:
        """The rank's shard of the flat is here, in these frames."""
        self._numbers[self._layout.frames[id(flat)]] = torch.tensor(frames)

    def frames(self, flat: Flat) -> list[int]:
        """Where the rank's shard was when it last gathered it."""
        numbers: list[int] = self._numbers[self._layout.frames[id(flat)]].tolist()
        return numbers
