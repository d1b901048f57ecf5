"""The forms a parameter takes.

full       what the model computes with: a view into ``Flat.full``, the unit's parameters end to end.
           On one host all ranks map the same ``full``; between hosts its memory is there only while gathered.
shard      this rank's equal slice of ``full``; what is gathered. Under a budget it may be away, in its ``home``.
master     the shard in the precision the optimizer works in; the shard itself where that is the same.
gradient   the slice of the ranks' mean gradient that this rank keeps, laid out like the shard.
span       the elements of a shard that are worked on at once: all of them, or what fits a page of memory.
piece      the part of one parameter that lies in a shard, or in a span of it.
landing    a buffer like ``full`` in which this rank's gradients come to lie until they are reduced.

The code uses these words for these things only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from ciuic_dist.compress.blockwise import Code
from ciuic_dist.sharding.columns import Column, GradientColumn, ResidentColumn, opened
from ciuic_dist.sharding.layout import FlatLayout, Piece
from ciuic_dist.sharding.masters import Master, ShardMaster, SplitMaster, WideMaster
from ciuic_dist.sharding.norms import power_sum
from ciuic_dist.sharding.quantized import BlockPlace, QuantizedColumn
from ciuic_dist.sharding.summing import mean_into

_TAKEN_EARLY = 2.0
"""The norm that is usually asked for."""


class Paging(Protocol):
    """Where a flat's columns live under a budget: in pages of ``page_bytes``."""

    page_bytes: int

    def gradient(self, name: str, numel: int, dtype: torch.dtype) -> GradientColumn:
        """Gradients of ``numel`` elements; ``name`` is for errors."""
        ...

    def state(self, name: str, numel: int, dtype: torch.dtype) -> Column:
        """The same for what is kept from step to step."""
        ...

    def span_numel(self, itemsize: int) -> int:
        """Elements of a span whose widest column has ``itemsize`` bytes an element."""
        ...


class Home(Protocol):
    """Where a shard lives under a budget while the device has no memory for it."""

    def hold(self) -> AbstractContextManager[None]:
        """The shard is on the device while the context lasts."""
        ...

    def changing(self) -> None:
        """The shard is about to be written to."""
        ...

    def forget(self) -> None:
        """The content is of no use any more."""
        ...


class Keeper(Protocol):
    """Keeps values as they were, which it is still writing down somewhere."""

    def wait(self) -> None:
        """Return when it has; raise what failed."""
        ...

    def before_update(self, flat: Flat, low: int, high: int, owner: object) -> None:
        """A span's master and the state that ``owner`` has for it are open, and about to be written to."""
        ...

    def after_update(self) -> None:
        """An update is over."""
        ...

    def abandon(self) -> None:
        """The model's memory is about to go; returns when nothing is read any more."""
        ...


class Flat:
    """The parameters of one unit that have one dtype and are all trained or all frozen."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[nn.Parameter],
        layout: FlatLayout,
        *,
        owner: int,
        compute_dtype: torch.dtype,
        device: torch.device,
        paging: Paging | None = None,
        spills: bool = False,
    ) -> None:
        """``owner`` is which shard of ``layout`` this rank keeps (0 where nothing is sharded).

        ``stubs`` are the parameters without memory, while their unit is away.
        ``final``: the gradients that are coming are the step's last, and nothing reads the parameters until the
        update; ``consume``, where there is one, then takes the spans as they are reduced, updates them and uses the
        gradients up.
        Without ``paging`` all columns are resident, and a shard is one span; ``spills``: the shard may be away.
        """
        self.name = name
        self.parameters = list(parameters)
        self.layout = layout
        self.owner = owner
        self.device = device
        self.trainable = parameters[0].requires_grad
        self.master_dtype = parameters[0].dtype
        self.compute_dtype = compute_dtype
        self.paging = paging
        self.spills = spills
        self.home: Home | None = None
        self.keeper: Keeper | None = None
        self.stubs = self._make_stubs() if spills else []
        self.full: Tensor
        self.shard: Tensor
        self.master: Master
        self.gradient = self._gradient()
        self.landing: Tensor | None = None
        self.written = [False] * len(self.parameters)
        self.touched = [False] * len(self.parameters)
        self._squares: dict[int, dict[int, Tensor]] = {}
        self.final = False
        self.consume: Callable[[Iterator[tuple[int, int]]], None] | None = None

    @property
    def full_bytes(self) -> int:
        """Bytes of the full form."""
        return self.layout.numel * self.compute_dtype.itemsize

    @property
    def own_bytes(self) -> int:
        """Bytes this rank keeps between steps besides ``full``, pages apart: master and gradient."""
        return self.master.nbytes + self.gradient.nbytes

    def column(self, name: str, dtype: torch.dtype) -> Column:
        """One more value for each element of the shard, kept from step to step."""
        return self._kept(name, self.layout.shard_numel, dtype)

    def quantized_column(self, name: str, code: Code) -> Column:
        """The same for fp32 values, in 8 bits."""
        place = BlockPlace(self.layout.shard_numel, None if self.paging is None else self.paging.page_bytes)
        return QuantizedColumn(self._kept(name, place.nbytes, torch.uint8), place, code, self.device)

    def _kept(self, name: str, numel: int, dtype: torch.dtype) -> Column:
        if self.paging is None:
            return ResidentColumn(numel, dtype, self.device)
        return self.paging.state(f"{self.name} {name}", numel, dtype)

    def _gradient(self) -> GradientColumn:
        numel = self.layout.shard_numel
        if self.paging is None:
            return ResidentColumn(numel, self.master_dtype, self.device)
        return self.paging.gradient(f"{self.name} gradient", numel, self.master_dtype)

    def place(self, full: Tensor, shard: Tensor | None = None) -> None:
        """Take the memory for the full form, and for the shard where that is no slice of it.

        The master is made here where it differs.
        """
        self.full, self.shard = full, full[self.shard_range] if shard is None else shard
        if self.compute_dtype == self.master_dtype:
            self.master = ShardMaster(self.shard, stays=not self.spills)
        elif (self.compute_dtype, self.master_dtype) == (torch.bfloat16, torch.float32):
            self.master = SplitMaster(self.shard, self.column("low halves", torch.int16))
        else:
            self.master = WideMaster(self.shard, self.column("master", self.master_dtype))

    def view(self, index: int, buffer: Tensor) -> Tensor:
        """Parameter ``index`` as it lies in ``buffer``, which is laid out like ``full``."""
        slot = self.layout.slots[index]
        return buffer[slot.offset : slot.offset + prod(slot.shape)].view(slot.shape)

    def spans(self) -> Iterator[tuple[int, int]]:
        """The shard's spans in order, as (low, high)."""
        total = self.layout.shard_numel
        step = total if self.paging is None else self.paging.span_numel(self.master_dtype.itemsize)
        for low in range(0, total, step):
            yield low, min(low + step, total)

    def pieces(self, low: int = 0, high: int | None = None) -> Iterator[Piece]:
        """The pieces of this rank's shard, or of a span of it."""
        return self.layout.pieces(self.owner, low, self.layout.shard_numel if high is None else high)

    @property
    def shard_range(self) -> slice:
        """Where this rank's shard lies in the full form."""
        return slice(self.owner * self.layout.shard_numel, (self.owner + 1) * self.layout.shard_numel)

    def held(self) -> AbstractContextManager[None]:
        """The shard is on the device while the context lasts."""
        return nullcontext() if self.home is None else self.home.hold()

    def forget(self) -> None:
        """No value is of use any more: all will be written anew, whether what there was can be read or not."""
        self.master.forget()
        if self.home is not None:
            self.home.forget()

    @contextmanager
    def opened_master(self, low: int, high: int, *, dirty: bool) -> Iterator[Tensor]:
        """The span's values in the optimizer's precision; the shard follows where they are written to."""
        with self.held():
            if dirty and self.home is not None:
                self.home.changing()
            values = self.master.open(low, high)
            try:
                yield values
            finally:
                self.master.close(low, high, values, dirty=dirty)

    def receive(
        self, sources: Sequence[Tensor], divisor: int, written: Sequence[bool], *, replace: bool = False
    ) -> None:
        """Add the mean of the ranks' gradients of this shard to what there is, or ``replace`` that by it.

        ``written``: of which parameters any rank has one.
        """
        accumulate = any(self.touched) and not replace
        spans = self._add_mean(sources, divisor, accumulate=accumulate, take_norms=self._consumer is None)
        self._mark(written)
        self._finish(spans)

    def receive_part(self, sources: Sequence[Tensor], divisor: int, *, replace: bool = False) -> None:
        """The same where it is not known yet which parameters are meant: ``received`` comes later."""
        accumulate = any(self.touched) and not replace
        for _ in self._add_mean(sources, divisor, accumulate=accumulate, take_norms=True):
            pass

    def add_received(self, out: Tensor) -> None:
        """Add what has been received so far, if anything, to ``out``, which is laid out like the shard."""
        for low, high in self.spans() if any(self.touched) else ():
            with opened(self.gradient, low, high, dirty=False) as gradient:
                out[low:high].add_(gradient)

    def received(self, written: Sequence[bool]) -> None:
        """What ``receive_part`` left open."""
        self._mark(written)
        self._finish(self.spans())

    @property
    def _consumer(self) -> Callable[[Iterator[tuple[int, int]]], None] | None:
        return self.consume if self.final else None

    def _mark(self, written: Sequence[bool]) -> None:
        self.touched = [old or new for old, new in zip(self.touched, written, strict=True)]

    def _finish(self, spans: Iterator[tuple[int, int]]) -> None:
        if self._consumer is not None:
            self._consumer(spans)
        for _ in spans:
            pass

    def _add_mean(
        self, sources: Sequence[Tensor], divisor: int, *, accumulate: bool, take_norms: bool
    ) -> Iterator[tuple[int, int]]:
        """Span by span, as they are asked for; each is given when it is complete."""
        for low, high in self.spans():
            if sources:
                with opened(self.gradient, low, high, dirty=True) as gradient:
                    mean_into(gradient, [source[low:high] for source in sources], divisor, accumulate=accumulate)
                    if take_norms and self.paging is not None:
                        self._squares[low] = {
                            piece.index: power_sum(_cut(gradient, piece, low), piece.shard_offset, _TAKEN_EARLY)
                            for piece in self.pieces(low, high)
                        }
            yield low, high

    def power_sums(self, norm_type: float) -> Iterator[Tensor]:
        """``power_sum`` of the reduced gradients; those of spans in pages were taken when they were written."""
        for low, high in self.spans():
            touched = [piece for piece in self.pieces(low, high) if self.touched[piece.index]]
            if norm_type == _TAKEN_EARLY and low in self._squares:
                yield from (self._squares[low][piece.index] for piece in touched)
            elif touched:
                with opened(self.gradient, low, high, dirty=False) as gradient:
                    for piece in touched:
                        yield power_sum(_cut(gradient, piece, low), piece.shard_offset, norm_type)

    def scale_gradient(self, factor: float) -> None:
        """Multiply the reduced gradients."""
        if any(self.touched):
            self._squares.clear()
            self.gradient.scale(factor)

    def write_gradient(self, index: int, gradient: Tensor) -> None:
        """Add one parameter's gradient to the landing."""
        assert self.landing is not None
        target = self.view(index, self.landing)
        if self.written[index]:
            target.add_(gradient)
        else:
            target.copy_(gradient)
        self.written[index] = True

    def zero_unwritten(self) -> None:
        """Gradients that did not come on this rank count as zero for the ranks where they did."""
        if self.landing is not None:
            for index, written in enumerate(self.written):
                if not written:
                    self.view(index, self.landing).zero_()

    def clear_written(self) -> None:
        """The landing's content has been used."""
        self.written = [False] * len(self.parameters)

    def zero_grad(self, indices: Sequence[int] | None = None) -> None:
        """Forget the gradients of the parameters ``indices`` (all: None), reduced or not."""
        chosen = range(len(self.parameters)) if indices is None else indices
        for index in chosen:
            self.touched[index] = self.written[index] = False
        if any(self.touched):  # another optimizer's gradients stay; ours must not be added to
            for low, high in self.spans():
                with opened(self.gradient, low, high, dirty=True) as gradient:
                    for piece in self.pieces(low, high):
                        if piece.index in chosen:
                            _cut(gradient, piece, low).zero_()
        else:
            self.gradient.drop()
            self._squares.clear()
        if not any(self.written):
            self.landing = None

    def attach(self) -> None:
        """Point the parameters at the full form."""
        for index, parameter in enumerate(self.parameters):
            parameter.data = self.view(index, self.full)

    def detach(self) -> None:
        """Point the parameters at memory that isn't there, so that reading them is an error and not zeros."""
        for parameter, stub in zip(self.parameters, self.stubs, strict=True):
            parameter.data = stub

    def check_attached(self) -> None:
        """Raise RuntimeError where a parameter was moved out of the full form, or unfrozen, after ``shard``."""
        homes = [self.full.untyped_storage()._cdata]
        if self.home is not None:
            homes.append(self.stubs[0].untyped_storage()._cdata)
        for slot, parameter in zip(self.layout.slots, self.parameters, strict=True):
            if parameter.untyped_storage()._cdata not in homes:
                raise RuntimeError(
                    f"{slot.name} was moved or converted after the model was sharded, so the other ranks and the "
                    f"optimizer no longer see it: call .to(), .double() and their like before cd.shard"
                )
            if parameter.requires_grad and not self.trainable:
                raise RuntimeError(f"{slot.name} was unfrozen after the model was sharded: unfreeze it before cd.shard")

    def _make_stubs(self) -> list[Tensor]:
        absent = torch.empty(self.layout.numel, dtype=self.compute_dtype, device=self.device)
        views = [self.view(index, absent) for index in range(len(self.parameters))]
        absent.untyped_storage().resize_(0)  # after the views, which can only be made of memory that is there
        return views


def _cut(span: Tensor, piece: Piece, low: int) -> Tensor:
    """A piece's part of its span, which begins at ``low``."""
    return span[piece.shard_offset - low :][: piece.numel]
