"""What an optimizer does at once: the pieces of one span, with their masters, gradients and state on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ciuic_dist.compress.blockwise import SIGNED, UNSIGNED
from ciuic_dist.memory.process import Freed
from ciuic_dist.sharding.columns import Column, opened
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.layout import Piece

_NEVER_NEGATIVE = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "exp_inf", "sum", "step_size"}
"""The keys of state of torch's optimizers that has no sign."""

_QUANTIZED_SPAN = 1 << 20
"""Elements; a multiple of a block's."""


class PieceParameter(nn.Parameter):
    """A piece as the inner optimizer sees it: 1-D, with values while its part is open, ``absent`` between."""

    flat: Flat
    place: Piece
    absent: Tensor


def piece_parameter(flat: Flat, place: Piece) -> PieceParameter:
    """The piece, trained, not open."""
    low = place.shard_offset
    absent = flat.master.empty(low, low + place.numel)
    piece = PieceParameter(absent, requires_grad=True)
    piece.flat, piece.place, piece.absent = flat, place, absent
    return piece


@dataclass(slots=True)
class FlatState:
    """The optimizer state of a flat that is kept in columns: one for each key of state with one value an element.

    ``freed``: what the optimizer makes in the heap before it is there. ``quantized``: of fp32 values in 8 bits.
    ``paged`` has for the keys of a piece that are there what ``inner.state`` has for them then: tensors without
    memory. They are made once: small objects made anew in each step break up the heap.
    """

    flat: Flat
    freed: Freed
    quantized: bool = False
    columns: dict[str, Column] = field(default_factory=dict)
    paged: dict[PieceParameter, dict[str, Tensor]] = field(default_factory=dict)

    def spans(self) -> Iterator[tuple[int, int]]:
        """What is updated at once, in order."""
        for low, high in self.flat.spans():
            yield from self.within(low, high)

    def within(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The same of one span of the flat; what has to be made fp32 for the update is not all of a large shard."""
        step = _QUANTIZED_SPAN if self.quantized else high - low
        for start in range(low, high, step):
            yield start, min(start + step, high)

    @property
    def in_columns(self) -> bool:
        """Whether that is where the state is; else the inner optimizer has it."""
        return self.quantized or self.flat.paging is not None

    def column(self, key: str, dtype: torch.dtype) -> Column:
        """The column of ``key``, made at first use."""
        if key not in self.columns:
            self.columns[key] = self._make_column(key, dtype)
        return self.columns[key]

    def foresee(self, keys: Mapping[str, torch.dtype]) -> None:
        """State that will be in pages has its columns, though no content; ``keys`` are those of fp32 parameters."""
        if self.flat.paging is not None:
            for key, dtype in keys.items():
                self.column(key, self.flat.master_dtype if dtype == torch.float32 else dtype)

    def forget(self) -> None:
        """Nothing that is kept is of use any more."""
        self.paged.clear()
        for column in self.columns.values():
            column.drop()

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that belong to the columns alone."""
        return sum(column.nbytes for column in self.columns.values())

    def _make_column(self, key: str, dtype: torch.dtype) -> Column:
        if self.quantized and dtype == torch.float32:
            return self.flat.quantized_column(key, UNSIGNED if key in _NEVER_NEGATIVE else SIGNED)
        return self.flat.column(key, dtype)


class Part:
    """The pieces of one span of a flat, a list for each parameter group."""

    def __init__(self, flat: Flat, low: int, high: int, state: FlatState, groups: int) -> None:
        self.flat = flat
        self.low = low
        self.high = high
        self.groups: list[list[PieceParameter]] = [[] for _ in range(groups)]
        self._state = state

    @property
    def state_in_columns(self) -> bool:
        """Whether it has to be opened to be read."""
        return self._state.in_columns

    @property
    def pieces(self) -> Iterator[PieceParameter]:
        """Of all groups."""
        for members in self.groups:
            yield from members

    @property
    def places(self) -> list[Piece]:
        """Of all pieces."""
        return [piece.place for piece in self.pieces]

    def step(self, inner: Optimizer) -> None:
        """Update the pieces that have a gradient."""
        if not any(self.flat.touched[piece.place.index] for piece in self.pieces):
            return
        with self._on_device(), self.open_state(inner, dirty=True):
            if self.flat.keeper is not None:
                self.flat.keeper.before_update(self.flat, self.low, self.high, inner)
            with only(inner, self.groups):
                inner.step()
            for piece in self.pieces:
                piece.grad = None

    @contextmanager
    def open_state(self, inner: Optimizer, *, dirty: bool) -> Iterator[None]:
        """State that is in columns is in ``inner.state`` while the context lasts; ``dirty``: it may change."""
        if not self._state.in_columns:
            yield
            return
        with ExitStack() as stack:
            spans: dict[str, Tensor] = {}

            def span(key: str, dtype: torch.dtype) -> Tensor:
                if key not in spans:
                    column = self._state.column(key, dtype)
                    spans[key] = stack.enter_context(opened(column, self.low, self.high, dirty=dirty))
                return spans[key]

            for piece in self.pieces:
                for key in self._state.paged.get(piece, ()):
                    inner.state[piece][key] = self._cut(span(key, inner.state[piece][key].dtype), piece)
            yield
            new = sum([self._put_away(piece, inner.state.get(piece, {}), span) for piece in self.pieces])
            if self.flat.device.type == "cpu":
                self._state.freed.add(new)  # what the optimizer made it in leaves holes, span after span

    def _put_away(self, piece: PieceParameter, state: dict[str, Any], span: Any) -> int:
        """Move what has one value an element into columns; what is left in ``state`` has no memory.

        Returns the bytes of what wasn't there before.
        """
        before = self._state.paged.get(piece, {})
        paged, new = {}, 0
        for key, value in state.items():
            if is_elementwise(value, piece):
                room = self._cut(span(key, value.dtype), piece)
                if value.data_ptr() != room.data_ptr():
                    room.copy_(value)
                if key not in before:
                    new += value.nbytes
                paged[key] = before[key] if key in before else torch.empty_like(value, device="meta")
        state.update(paged)
        self._state.paged[piece] = paged
        return new

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        flat, low, high = self.flat, self.low, self.high
        with (
            flat.opened_master(low, high, dirty=True) as master,
            opened(flat.gradient, low, high, dirty=False) as gradient,
        ):
            for piece in self.pieces:
                piece.data = self._cut(master, piece)
                piece.grad = self._cut(gradient, piece) if flat.touched[piece.place.index] else None
            yield
            for piece in self.pieces:
                piece.data = piece.absent

    def _cut(self, span: Tensor, piece: PieceParameter) -> Tensor:
        start = piece.place.shard_offset - self.low
        return span[start : start + piece.place.numel]


def is_elementwise(value: Any, piece: PieceParameter) -> bool:
    """Whether ``value`` is state with one value for each element of the piece."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.numel() == piece.place.numel


@contextmanager
def only(inner: Optimizer, groups: Sequence[list[PieceParameter]]) -> Iterator[None]:
    """``inner`` has only these parameters while the context lasts, a list for each of its groups."""
    whole = [group["params"] for group in inner.param_groups]
    try:
        for group, members in zip(inner.param_groups, groups, strict=True):
            group["params"] = members
        yield
    finally:
        for group, members in zip(inner.param_groups, whole, strict=True):
            group["params"] = members
