"""Where each flat's gradients lie in a rank's mailbox; the same in every rank's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ciuic_dist.planning.flight import MAILBOX_SLOTS
from ciuic_dist.sharding.flat import Flat

_ALIGNMENT = 4096


class MailboxLayout:
    """A board, flags of all flats, then a slot each for those that need their own, then the ring."""

    def __init__(self, flats: Sequence[Flat], own_slot: Sequence[Flat], board_bytes: int) -> None:
        """``own_slot``: flats whose gradients come over the whole backward, and so can't take turns."""
        self._flags: dict[int, slice] = {}
        self._own: dict[int, int] = {}
        self._dealt: dict[int, int] = {}
        self._owners = {id(flat) for flat in own_slot}
        self._offsets: list[int] = []
        end = board_bytes
        for flat in flats:
            self._flags[id(flat)] = slice(end, end + len(flat.parameters))
            end += len(flat.parameters)
        for flat in own_slot:
            self._own[id(flat)] = len(self._offsets)
            end = self._append(end, _nbytes(flat))
        in_turn = [_nbytes(flat) for flat in flats if id(flat) not in self._owners]
        self._ring = range(len(self._offsets), len(self._offsets) + min(MAILBOX_SLOTS, len(in_turn)))
        for _ in self._ring:
            end = self._append(end, max(in_turn))
        self.nbytes = end

    def _append(self, end: int, nbytes: int) -> int:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        self._offsets.append(start)
        return start + nbytes

    def deal(self, order: Sequence[Flat]) -> None:
        """Give the ring's slots to the flats in turn."""
        in_turn = [flat for flat in order if id(flat) not in self._owners]
        self._dealt = {id(flat): self._ring[turn % len(self._ring)] for turn, flat in enumerate(in_turn)}

    def slot(self, flat: Flat) -> int:
        """Which slot the flat has in this backward."""
        own = self._own.get(id(flat))
        return self._dealt[id(flat)] if own is None else own

    def is_next_tenant(self, flat: Flat, waiting: Sequence[Flat]) -> bool:
        """Whether no other flat of ``waiting`` (those still to be submitted, in order) has the slot before."""
        slot = self.slot(flat)
        return next(other for other in waiting if self.slot(other) == slot) is flat

    def view(self, mailbox: Tensor, flat: Flat) -> Tensor:
        """The flat's slot in one rank's mailbox, in the dtype the model computes with."""
        start = self._offsets[self.slot(flat)]
        return mailbox[start : start + _nbytes(flat)].view(flat.compute_dtype)

    def flags(self, mailbox: Tensor, flat: Flat) -> Tensor:
        """One bool a parameter: whether the rank has written its gradient."""
        return mailbox[self._flags[id(flat)]].view(torch.bool)


def _nbytes(flat: Flat) -> int:
    return flat.layout.numel * flat.compute_dtype.itemsize
