"""When units are gathered, and when their full forms go.

Under collectives all ranks gather in one order (AgreedOrder), whatever each rank's own forward and backward do: what a
rank doesn't use stays full until the phase ends. Elsewhere each rank gathers what it needs when it needs it (OwnOrder).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ciuic_dist.comm.errors import PeerLost
from ciuic_dist.sharding.exchange.base import Exchange
from ciuic_dist.sharding.orders import AgreedOrder, OwnOrder
from ciuic_dist.sharding.unit import Unit, UnitState


class Gathers:
    """Makes units full when they are needed, and the next one of the order ahead of its need."""

    def __init__(self, units: Sequence[Unit], exchange: Exchange) -> None:
        """``units``: in the model's order, the root (if it has parameters) last."""
        self._units = units
        self._exchange = exchange
        self.order = OwnOrder(units) if exchange.own_order else AgreedOrder(units)
        self._under_way = False
        self._ahead: list[Unit] = []
        self.exchanging = False
        self._may_prefetch = False

    def begin(self, phase: str) -> None:
        """A forward of the model, or a backward, begins."""
        self._under_way = True
        self.order.begin(phase)

    def end(self) -> bool:
        """It is over for this rank: take part in what other ranks may have needed; only the root may stay full.

        Returns whether the other ranks come so far as well: not so where it never began, or it broke.
        """
        if not self._under_way:
            return False
        self._under_way = False
        for unit in self.order.rest() if self._exchange.in_step else ():
            self._gather(unit)
            if not unit.is_root:
                self.release(unit)
        self.order.end()
        self.release_all(but_root=True)
        return True

    def need(self, unit: Unit, before: Unit | None = None) -> None:
        """Make ``unit`` full; ``before``: it should have been, before that unit."""
        if unit.state is not UnitState.FULL or unit in self._ahead:
            self._may_prefetch = True
            if self._under_way:
                self.order.need(unit, before)
        if unit in self._ahead:
            self._ahead.remove(unit)
        if unit.state is UnitState.SHARDED:
            for other in self._to_gather_for(unit):
                self._make_room(other)
                self._gather(other)
                if other is not unit:
                    self._ahead.append(other)
        self._finish(unit)
        if self._under_way:
            self._prefetch()
        else:
            self._exchange.meet()

    def release(self, unit: Unit) -> None:
        """The unit's full form goes if it is one that goes."""
        if unit.state is UnitState.FULL and not unit.keep_full:
            self._let_go(unit)
            if self._under_way:
                self._prefetch()

    def release_all(self, *, but_root: bool) -> None:
        """Release every unit, also one gathered ahead that nobody used."""
        for unit in self._units:
            self._settle(unit)
            if not (but_root and unit.is_root):
                self.release(unit)

    def mark_stale(self) -> None:
        """Shards have changed: every full form is to be gathered anew."""
        for unit in self._units:
            self._settle(unit)
            self.release(unit)
            if unit.state is UnitState.FULL:
                unit.move(UnitState.SHARDED)

    def _to_gather_for(self, unit: Unit) -> list[Unit]:
        taken = self.order.take_until(unit) if self._under_way else [unit]
        return taken if self._exchange.in_step else [unit]

    def _make_room(self, unit: Unit) -> None:
        """Under a budget: what was gathered for others' sake goes first, in the hope that it isn't needed here."""
        for other in [other for other in self._ahead if other.state is UnitState.FULL]:
            if self._exchange.has_room(unit):  # the same on all ranks, however far each is
                return
            self._ahead.remove(other)
            self._let_go(other)

    def _prefetch(self) -> None:
        """One unit ahead of each need, when there is room."""
        following = self.order.following()
        for wrong in [unit for unit in self._ahead if unit is not following] if self._exchange.own_order else ():
            self._settle(wrong)
        if following is None or following.state is not UnitState.SHARDED or not self._may_prefetch:
            return
        if self._exchange.has_room(following):
            self._may_prefetch = False
            self.order.take_until(following)
            self._ahead.append(following)
            self._start(following)

    def _settle(self, unit: Unit) -> None:
        """A gather that nobody has waited for yet is over, or taken back where that is possible."""
        if unit in self._ahead:
            self._ahead.remove(unit)
        if unit.state is UnitState.GATHERING and self._exchange.own_order:
            self._let_go(unit)
        self._finish(unit)

    def _gather(self, unit: Unit) -> None:
        """Take part in the gather of ``unit``, even if this rank has it still."""
        self._finish(unit)
        if unit.state is UnitState.FULL:
            if unit.keep_full:
                return
            self._let_go(unit)
        self._start(unit)
        self._finish(unit)

    def _let_go(self, unit: Unit) -> None:
        with self._at_work():
            self._exchange.release(unit)
        unit.move(UnitState.SHARDED)

    def _start(self, unit: Unit) -> None:
        with self._at_work():
            self._exchange.start_gather(unit)
        unit.move(UnitState.GATHERING)

    def _finish(self, unit: Unit) -> None:
        if unit.state is not UnitState.GATHERING:
            return
        try:
            with self._at_work():
                self._exchange.finish_gather(unit)
        except PeerLost:
            self._under_way = False
            raise
        unit.move(UnitState.FULL)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """What touches parameters meanwhile is not the model."""
        self.exchanging = True
        try:
            yield
        finally:
            self.exchanging = False
