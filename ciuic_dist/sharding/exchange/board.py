"""What each rank tells the others of its shards that come and go, in shared memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.unit import Unit

_NUMBERS = 2
"""In turn: a rank that is ahead writes the next number while others still read the last, and gets no further."""


class BoardLayout:
    """Counts for each unit, the same again for each rank and unit, then the numbers of each flat's frames."""

    def __init__(self, units: Sequence[Unit], ranks: int, frame_bytes: int) -> None:
        """The same on every rank. ``frame_bytes``: of each frame, where there are any."""
        self.units = units
        self.ranks = ranks
        self.frames: dict[int, slice] = {}
        end = _NUMBERS + 4 + 2 * (1 + ranks) * len(units)
        for flat in (flat for unit in units for flat in unit.flats if flat.spills):
            frames = -(-flat.full_bytes // (flat.layout.world * frame_bytes))
            self.frames[id(flat)] = slice(end, end + frames)
            end += frames
        self.nbytes = end * np.dtype(np.int64).itemsize


class Board:
    """One rank's, at the start of its mailbox; zero at first. Only that rank writes to it, and counts only grow."""

    def __init__(self, layout: BoardLayout, mailbox: Tensor) -> None:
        """``wanted``, by unit: how many claims the rank has made; ``released``: up to which it has given them up.

        ``admitted``, by rank and unit: up to which claim this rank, if it is the one that decides, has found room;
        ``granted``: up to which it has brought its shards.
        ``pressing``: 1 + the unit that the rank waits for, negative where it is all that is left to wait for; or 0.
        ``extra``: by how many bytes it has raised its budget of shards. ``pulse``: see Doorbell.
        """
        units, ranks = len(layout.units), layout.ranks
        self._layout = layout
        self._numbers = mailbox[: layout.nbytes].numpy().view(np.int64)
        ends = np.cumsum([_NUMBERS, 2, 1, 1, units, units, ranks * units, ranks * units])
        self._said, self.pulse, self.pressing, self.extra, *by_unit, _ = np.split(self._numbers, ends)
        self.wanted, self.released, admitted, granted = by_unit
        self.admitted, self.granted = (part.reshape(ranks, units) for part in (admitted, granted))

    def say(self, turn: int, number: int) -> None:
        """The rank's part of the agreement number ``turn``."""
        self._said[turn % _NUMBERS] = number

    def said(self, turn: int) -> int:
        """What the rank said there."""
        return int(self._said[turn % _NUMBERS])

    def write(self, flat: Flat, frames: Sequence[int]) -> None:
        """The rank's shard of the flat is here, in these frames."""
        self._numbers[self._layout.frames[id(flat)]] = frames

    def frames(self, flat: Flat) -> list[int]:
        """Where the rank's shard is while a claim is granted."""
        numbers: list[int] = self._numbers[self._layout.frames[id(flat)]].tolist()
        return numbers
