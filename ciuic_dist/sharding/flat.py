"""The forms a parameter takes.

full       what the model computes with: a view into ``Flat.full``, the unit's parameters end to end.
           On one host all ranks map the same ``full``; between hosts its memory is there only while gathered.
shard      this rank's equal slice of ``full``; what is gathered.
master     the shard in the precision the optimizer works in; the shard itself where that is the same.
piece      the part of one parameter that lies in a shard (or master, or gradient shard).
landing    a buffer like ``full`` in which this rank's gradients come to lie until they are reduced;
           ``grad`` is the slice of their mean that this rank keeps, laid out like ``master``.

The code uses these words for these things only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn

from ciuic_dist.memory.host import allocate
from ciuic_dist.sharding.layout import FlatLayout, Piece


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
    ) -> None:
        """``owner`` is which shard of ``layout`` this rank keeps (0 where nothing is sharded)."""
        self.name = name
        self.parameters = list(parameters)
        self.layout = layout
        self.owner = owner
        self.device = device
        self.trainable = parameters[0].requires_grad
        self.master_dtype = parameters[0].dtype
        self.compute_dtype = compute_dtype
        self.full: Tensor
        self.shard: Tensor
        self.master: Tensor
        self.landing: Tensor | None = None
        self.written = [False] * len(self.parameters)
        self.touched = [False] * len(self.parameters)
        self._grad: Tensor | None = None

    @property
    def full_bytes(self) -> int:
        """Bytes of the full form."""
        return self.layout.numel * self.compute_dtype.itemsize

    def place(self, full: Tensor, shard: Tensor) -> None:
        """Take the memory for the full form and the shard; the master is made here where it differs."""
        self.full, self.shard = full, shard
        same = self.compute_dtype == self.master_dtype
        self.master = shard if same else allocate(shard.numel(), self.master_dtype, self.device)

    def view(self, index: int, buffer: Tensor) -> Tensor:
        """Parameter ``index`` as it lies in ``buffer``, which is laid out like ``full``."""
        slot = self.layout.slots[index]
        return buffer[slot.offset : slot.offset + prod(slot.shape)].view(slot.shape)

    def pieces(self) -> Iterator[Piece]:
        """The pieces of this rank's shard."""
        return self.layout.pieces(self.owner)

    @property
    def shard_range(self) -> slice:
        """Where this rank's shard lies in the full form."""
        return slice(self.owner * self.layout.shard_numel, (self.owner + 1) * self.layout.shard_numel)

    @property
    def grad(self) -> Tensor:
        """This rank's slice of the mean gradient; only what ``touched`` marks is meaningful. Made at first use."""
        if self._grad is None:
            self._grad = allocate(self.layout.shard_numel, self.master_dtype, self.device)
        return self._grad

    def gradient_of(self, piece: Piece) -> Tensor | None:
        """The reduced gradient of a piece, 1-D; None where no rank had one."""
        if not self.touched[piece.index]:
            return None
        return self.grad[piece.shard_offset : piece.shard_offset + piece.numel]

    def gradients(self) -> Iterator[Tensor]:
        """The reduced gradients of this rank's pieces."""
        for piece in self.pieces():
            gradient = self.gradient_of(piece)
            if gradient is not None:
                yield gradient

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
            for piece in self.pieces():
                if piece.index in chosen:
                    self.grad[piece.shard_offset : piece.shard_offset + piece.numel].zero_()
        if not any(self.written):
            self.landing = None

    def refresh_shard(self) -> None:
        """After the optimizer has changed the master: round it to what the model computes with."""
        if self.master is not self.shard:
            self.shard.copy_(self.master)

    def check_attached(self) -> None:
        """Raise RuntimeError where a parameter was moved out of the full form, or unfrozen, after ``shard``."""
        home = self.full.untyped_storage()._cdata
        for slot, parameter in zip(self.layout.slots, self.parameters, strict=True):
            if parameter.untyped_storage()._cdata != home:
                raise RuntimeError(
                    f"{slot.name} was moved or converted after the model was sharded, so the other ranks and the "
                    f"optimizer no longer see it: call .to(), .double() and their like before cd.shard"
                )
            if parameter.requires_grad and not self.trainable:
                raise RuntimeError(f"{slot.name} was unfrozen after the model was sharded: unfreeze it before cd.shard")

    @property
    def kept_bytes(self) -> int:
        """Bytes this rank keeps between steps besides ``full``: master and gradient shard."""
        own = 0 if self.master is self.shard else self.master.nbytes
        return own + (0 if self._grad is None else self._grad.nbytes)
