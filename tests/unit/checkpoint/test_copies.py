"""Copies stay as they were, in no more memory than they may have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ciuic_dist.checkpoint.copies import COPIES, Rooms
from ciuic_dist.checkpoint.pieces import BoxedPiece


def span(fill: int) -> list[tuple[str, BoxedPiece]]:
    wide, halves = torch.full((10,), fill, dtype=torch.float32), torch.full((10,), fill, dtype=torch.int16)
    return [("wide", BoxedPiece((4, 5), 3, wide)), ("halves", BoxedPiece((4, 5), 3, halves))]


def test_what_changes_afterwards_is_not_seen() -> None:
    entries = span(1)
    copy = Rooms(1 << 20).copy(entries)
    assert copy is not None
    boxes = [[(offsets, box.clone()) for offsets, box in piece.boxes()] for _, piece in entries]
    for _, piece in entries:
        piece.values.zero_()
    assert [name for name, _ in copy.entries] == ["wide", "halves"]
    for expected, (_, piece) in zip(boxes, copy.entries, strict=True):
        for (offsets, values), (at, found) in zip(expected, piece.boxes(), strict=True):
            assert offsets == at
            assert found.dtype == values.dtype
            assert torch.equal(found, values)


def test_memory_is_used_again_and_no_more_copies_wait_than_there_is_memory_for() -> None:
    rooms = Rooms(1 << 20)
    copies = [rooms.copy(span(number)) for number in range(COPIES)]
    assert rooms.copy(span(9)) is None
    first = copies[0]
    assert first is not None
    rooms.give_back(first)
    again = rooms.copy(span(9))
    assert again is not None
    assert again.room.data_ptr() == first.room.data_ptr()


def test_copies_take_no_more_bytes_than_they_may() -> None:
    each = 64 + 64  # bytes: 40 and 20, each padded
    rooms = Rooms(2 * each + each // 2)
    copies = [rooms.copy(span(number)) for number in range(3)]
    assert [copy is None for copy in copies] == [False, False, True]


class Seen(BoxedPiece):
    """Somebody acts whenever its values are looked at, as another thread may."""

    def __init__(self, piece: BoxedPiece, act: Callable[[], None]) -> None:
        self._values = piece.values
        self._act = act
        super().__init__((4, 5), 3, piece.values)

    @property
    def values(self) -> Tensor:
        self._act()
        return self._values

    @values.setter
    def values(self, values: Tensor) -> None:
        self._values = values


def test_memory_that_is_given_back_meanwhile_serves_no_two_copies() -> None:
    """What it was given to was lost, and another span written in its place."""
    rooms = Rooms(1 << 20)
    done, under_way = [copy for copy in (rooms.copy(span(number)) for number in range(2)) if copy]
    rooms.give_back(done)
    waiting = [under_way]

    def give_back() -> None:
        if waiting:
            rooms.give_back(waiting.pop())

    looked_at = [(name, Seen(piece, give_back)) for name, piece in span(3)]
    second, third = rooms.copy(looked_at), rooms.copy(span(4))
    assert second is not None
    assert third is not None
    assert second.room.data_ptr() != third.room.data_ptr()
    assert all(
        piece.values.unique().tolist() == [fill]
        for copy, fill in ((second, 3), (third, 4))
        for _, piece in copy.entries
    )
