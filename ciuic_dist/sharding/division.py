"""How the device's budget is divided, and when it has to be divided anew.

What a step needs besides parameters and pages is known when one has run. So parameters and pages have the least that
they need while two steps are watched, and get the rest then. A forward of larger inputs than any before begins this
anew, before it computes: what is in its way leaves first.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.tier import PageError
from ciuic_dist.sharding.activations import Activations
from ciuic_dist.sharding.exchange.base import Exchange
from ciuic_dist.sharding.meter import ActivationMeter
from ciuic_dist.sharding.sizes import KnownSizes, Sizes
from ciuic_dist.sharding.spill import Spill

_HEAD_ROOM = 1.25
"""Where sizes have grown they may go on to: room for so many times the bytes, where there is room."""


class Division:
    """Watches a model's steps for what they need. All ranks that share full forms do the same at the same time."""

    def __init__(
        self,
        spill: Spill,
        exchange: Exchange,
        activations: Activations | None,
        gradient_slots: Callable[[], int],
        largest_share: float,
    ) -> None:
        """``gradient_slots``: see ``Spill``; ``largest_share``: of all elements, in the largest flat."""
        self._spill = spill
        self._exchange = exchange
        self._activations = activations
        self._gradient_slots = gradient_slots
        self._largest_share = largest_share
        self._known = KnownSizes()
        self._meter: ActivationMeter | None = ActivationMeter()
        self._evaluation: ActivationMeter | None = None
        self._abandoned: list[ActivationMeter] = []
        self._head_room = 1.0
        self._needed = 0
        self._refused = False
        self._new: Sizes | None = None
        self.state_bytes = 0
        """Of the optimizer, in no page."""

    def check_pages(self) -> None:
        """Raise BudgetError where there is no room for the pages that are known now."""
        self._count_pages()
        self._check(self.transient)

    def begin_forward(self, sizes: Sizes, *, gradients: bool) -> None:
        """A forward of the model begins, nothing of which has been gathered.

        Raises BudgetError where lower tiers have no room for what must leave.
        """
        while self._abandoned:  # not sooner: autograd undoes what is done to modes in a backward
            self._abandoned.pop().stop()
        self._refused, self._new = False, None
        self._spill.gradient_slots = self._gradient_slots()
        grown = gradients and self._spill.outgrown
        if self._largest(grown or not self._known.cover(sizes, gradients=gradients)):
            self._begin_anew(gradients=gradients)
            self._new = sizes
        if gradients and self._meter is not None:
            self._meter.start()

    def end_forward(self, *, in_step: bool, raised: bool) -> None:
        """It is over, or has ``raised``; ``in_step``: so it is on the other ranks.

        Raises BudgetError, on all of them, where it needed too much.
        """
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is not None:
            evaluation.stop()
        new, self._new = self._new, None
        if in_step and new is not None and not self._largest(raised):
            self._known.add(new, gradients=evaluation is None)
        if in_step and evaluation is not None:
            self._needed = max(self._needed, self._agree_on(evaluation))
            if self._meter is None:
                self._divide(self._needed)
        elif in_step and self._meter is not None and self._meter.counting:
            self._agree_on(self._meter)

    def end_backward(self, *, raised: bool) -> None:
        """A backward is over. Raises BudgetError where it needed too much, on all ranks but those where it ``raised``.

        What they would have needed isn't known: no sizes are, on all ranks.
        """
        if self._meter is not None:
            self._meter.complete = True
            if self._meter.counting:
                self._refused |= raised
                if self._largest(raised):
                    self._known.forget()
                self._agree_on(self._meter)

    def end_step(self) -> None:
        """An update is over. Raises BudgetError, on all ranks, where the next one would need too much."""
        if self._meter is None or not self._meter.complete:
            return
        if self._meter.end_step():
            meter, self._meter = self._meter, None
            needed = self._spill.transient_bytes(self._counted(meter), meter.growth)
            self._needed = self._largest(max(needed, self._needed))
            self._divide(self._needed)
        elif self._activations is not None:
            self._activations.decide(self._spill.most_transient - self._counted(self._meter))
            self._agree_on(self._meter)
        self._spill.device.give_back_freed()

    @property
    def transient(self) -> int:
        """Bytes that activations and temporary values may take, or have taken in a step that is being watched."""
        meters = [meter for meter in (self._meter, self._evaluation) if meter is not None]
        return max([self._spill.transient, *map(self._counted, meters)])

    def note(self) -> None:
        """Memory has grown."""
        if self._meter is not None and self._meter.weighing:
            self._meter.weigh(self._spill.growth(self._exchange.shared_bytes()))

    def check(self) -> None:
        """Raise BudgetError, on this rank alone, where a forward has needed too much already.

        The others are told at the end of the forward.
        """
        watching = self._evaluation or self._meter
        if watching is not None and watching.counting:
            try:
                self._check(self._counted(watching))
            except BudgetError:
                self._refused = True
                raise

    def _begin_anew(self, *, gradients: bool) -> None:
        self._agree_on_pages()
        self._check(0)
        if self._meter is None:
            self._shrink()
        if (self._meter is None or self._meter.weighing) and self._known.any(gradients=gradients):
            self._head_room = _HEAD_ROOM
            self._known.slack = sqrt(_HEAD_ROOM)
        if not gradients:
            self._evaluation = ActivationMeter()
            self._evaluation.start()
        elif self._meter is None or self._meter.weighing:
            self._watch_anew()

    def _shrink(self) -> None:
        """Raises on all ranks what one meets, where all is divided as before."""
        error = None
        try:
            self._spill.shrink()
        except (BudgetError, PageError) as met:
            error = met
        if not self._largest(error is not None):
            return
        self._divide(self._needed)
        raise error or BudgetError("on another rank what is in the way of larger inputs can't leave the device")

    def _watch_anew(self) -> None:
        self._meter = ActivationMeter()
        if self._activations is not None:
            self._activations.watch_anew()

    def _agree_on(self, meter: ActivationMeter) -> int:
        """The most that any rank has counted. Raises BudgetError where that is too much."""
        needed = self._largest(self._counted(meter))
        self._agree_on_pages()
        try:
            self._check(needed)
        except BudgetError:
            self._forget()
            if not self._refused:  # this rank has said so
                raise
        return needed

    def _count_pages(self) -> None:
        self._spill.gradient_slots = self._gradient_slots()
        self._spill.stuck = self._spill.stuck_pages

    def _agree_on_pages(self) -> None:
        self._count_pages()
        self._spill.stuck = self._largest(self._spill.stuck)

    def _counted(self, meter: ActivationMeter) -> int:
        decided = self._activations if meter.weighing else None
        return meter.peak + self.state_bytes + (0 if decided is None else decided.needed)

    def _check(self, needed: int) -> None:
        self._spill.check(needed, 0 if self._activations is None else self._activations.crowded)
        if self._meter is not None:
            self._spill.hold()

    def _largest(self, number: int) -> int:
        """Of the ranks that gather together; the others each have a division of their own."""
        return self._exchange.largest(number) if self._exchange.together else number

    def _forget(self) -> None:
        """The next step is the first again."""
        if self._meter is not None:
            self._abandoned.append(self._meter)
        self._watch_anew()
        self._known.forget()

    def _divide(self, needed: int) -> None:
        room = max(needed, min(round(needed * self._head_room), self._spill.most_transient))
        self._known.slack = sqrt(room / max(needed, 1))  # bytes grow with the square of a size at most
        state_pages = self._largest(self._spill.state_pages)  # a rank may have no part of a small flat
        self._agree_on_pages()
        try:
            self._spill.divide(room, round(state_pages * self._largest_share))
        except BudgetError:
            self._forget()
            raise
