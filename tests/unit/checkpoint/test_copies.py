"""Copies stay as they were, in no more memory than they may have."""

from __future__ import annotations

import torch

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
