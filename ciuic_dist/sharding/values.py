"""Reads and writes masters as shards, pieces or whole parameters, whatever spans they are worked on in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.layout import Piece


def read_shard(flat: Flat) -> Tensor:
    """The master's values, 1-D, copied."""
    found = torch.empty(flat.layout.shard_numel, dtype=flat.master_dtype, device=flat.device)
    with flat.held():
        for low, high in flat.spans():
            with flat.opened_master(low, high, dirty=False) as values:
                found[low:high].copy_(values)
    return found


def write_shard(flat: Flat, values: Tensor) -> None:
    """Give the whole shard its values."""
    with flat.held():
        for low, high in flat.spans():
            with flat.opened_master(low, high, dirty=True) as master:
                master.copy_(values[low:high])


def read_piece(flat: Flat, piece: Piece) -> Tensor:
    """The master's values of a piece, 1-D, copied."""
    found = torch.empty(piece.numel, dtype=flat.master_dtype, device=flat.device)
    for low, high, part in _parts(flat, piece):
        with flat.opened_master(low, high, dirty=False) as values:
            found[part.start - piece.start :][: part.numel].copy_(values[part.shard_offset - low :][: part.numel])
    return found


def write_piece(flat: Flat, piece: Piece, values: Tensor) -> None:
    """Give a piece of the master its values, 1-D."""
    for low, high, part in _parts(flat, piece):
        with flat.opened_master(low, high, dirty=True) as master:
            master[part.shard_offset - low :][: part.numel].copy_(values[part.start - piece.start :][: part.numel])


def write_parameter(flat: Flat, index: int, values: Tensor) -> None:
    """Give parameter ``index`` its values, in its shape, as far as this rank keeps them."""
    for piece in flat.pieces():
        if piece.index == index:
            write_piece(flat, piece, values.reshape(-1)[piece.start : piece.stop])


def _parts(flat: Flat, piece: Piece) -> Iterator[tuple[int, int, Piece]]:
    """The piece as it lies in the flat's spans, each with the span's ends."""
    for low, high in flat.spans():
        if low < piece.shard_offset + piece.numel and piece.shard_offset < high:
            yield from ((low, high, part) for part in flat.pieces(low, high) if part.index == piece.index)
