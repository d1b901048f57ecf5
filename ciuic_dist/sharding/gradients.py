"""From gradients that arrive one by one to reductions in one order on all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ciuic_dist.comm.groups import gather_objects
from ciuic_dist.sharding.exchange.base import Exchange
from ciuic_dist.sharding.flat import Flat


class GradientFlow:
    """Collects what a backward produces and submits each flat when it is complete and its turn has come.

    The turn is the same on all ranks whatever order gradients come in: first ``expected``, from the second
    backward on the order in which rank 0 completed the first.
    """

    def __init__(self, expected: Sequence[Flat], exchange: Exchange) -> None:
        self._exchange = exchange
        self._order = list(expected)
        self._learned = False
        self._active = False
        self._sync = True
        self._arrived: dict[int, set[int]] = {}
        self._complete: list[Flat] = []
        self._done: set[int] = set()
        self._turn = 0

    @property
    def order(self) -> Sequence[Flat]:
        """The turns, in order."""
        return self._order

    @property
    def active(self) -> bool:
        """Whether a backward is under way."""
        return self._active

    def begin(self, *, sync: bool, last: bool) -> None:
        """A backward has begun, the ``last`` of its step or another; its gradients are reduced only if ``sync``."""
        self._active, self._sync = True, sync
        self._arrived = {id(flat): set() for flat in self._order}
        self._complete, self._done, self._turn = [], set(), 0
        if sync:
            self._exchange.begin(self._order, last=last)

    def arrive(self, flat: Flat, index: int, gradient: Tensor) -> bool:
        """Take the gradient of one parameter; whether all of the flat's have come."""
        if id(flat) in self._done:
            raise RuntimeError(f"a gradient of {flat.layout.slots[index].name} came after its unit was reduced")
        if flat.landing is None:
            flat.landing = self._exchange.landing(flat) if self._sync else None
        if flat.landing is None:
            flat.landing = torch.empty(flat.layout.numel, dtype=flat.master_dtype, device=flat.device)
        flat.write_gradient(index, gradient if gradient.layout is torch.strided else gradient.to_dense())
        arrived = self._arrived[id(flat)]
        arrived.add(index)
        return len(arrived) == len(flat.parameters)

    def complete(self, flat: Flat) -> None:
        """No more gradients of ``flat`` will come in this backward."""
        if id(flat) in self._done:
            return
        self._done.add(id(flat))
        self._complete.append(flat)
        while self._sync and self._turn < len(self._order) and id(self._order[self._turn]) in self._done:
            self._exchange.submit(self._order[self._turn])
            self._turn += 1

    def all_complete(self, flats: Sequence[Flat]) -> bool:
        """Whether no gradient of ``flats`` is awaited; never so with frozen ones, whose use leaves no trace."""
        return all(id(flat) in self._done for flat in flats)

    def finish(self) -> None:
        """The backward is over: what has not come will not."""
        for flat in self._order:
            self.complete(flat)
        self._active = False
        if self._sync:
            self._exchange.drain()
            if not self._learned:
                self._learn()

    def abandon(self) -> None:
        """The backward raised: forget all gradients, but keep step with the ranks that reduce theirs."""
        for flat in self._order:
            flat.final = False  # nobody updates from what is left
            flat.clear_written()
            flat.landing = None
        self.finish()
        for flat in self._order:
            flat.zero_grad()

    def _learn(self) -> None:
        self._learned = True
        place = {id(flat): position for position, flat in enumerate(self._order)}
        completed = gather_objects([place[id(flat)] for flat in self._complete])[0]
        self._order = [self._order[position] for position in completed]
