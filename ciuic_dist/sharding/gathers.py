"""Gathers follow one order on all ranks, whatever each rank's own forward and backward do.

A collective matches the other ranks' by its position alone, and ranks that share a budget wait for each other at a
board. So each phase has a program, the same on every rank: first the model's own order, from the second pass on the
order in which rank 0 needed the units in the first. A rank that needs a unit gathers everything in the program up to
it; what it then doesn't use stays full until the phase ends, and at the end it takes part in what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ciuic_dist.comm.errors import PeerLost
from ciuic_dist.comm.groups import gather_objects
from ciuic_dist.sharding.exchange.base import Exchange
from ciuic_dist.sharding.unit import Unit, UnitState


class _Program:
    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = list(units)
        self.cursor = 0
        self.needed: list[Unit] = []
        self.learned = False

    def learn(self) -> None:
        """Take rank 0's order; units it didn't need come last, for the ranks that do."""
        self.learned = True
        by_index = {unit.index: unit for unit in (*self.units, *self.needed)}
        order = gather_objects([unit.index for unit in self.needed])[0]
        missing = [unit for unit in self.units if unit.index not in order]
        self.units = [by_index[index] for index in order] + missing

    def take_until(self, unit: Unit) -> list[Unit]:
        """What to gather now so that ``unit`` is; a further use than the program knows is gathered on the spot."""
        if unit not in self.units[self.cursor :]:
            return [unit]
        end = self.units.index(unit, self.cursor) + 1
        taken, self.cursor = self.units[self.cursor : end], end
        return taken

    def take_rest(self) -> list[Unit]:
        """What no need has come to."""
        taken, self.cursor = self.units[self.cursor :], len(self.units)
        return taken


class Gathers:
    """Makes units full when they are needed, and the next one of the program ahead of its need."""

    def __init__(self, units: Sequence[Unit], exchange: Exchange) -> None:
        """``units``: in the model's order, the root (if it has parameters) last."""
        self._units = units
        self._exchange = exchange
        inner = [unit for unit in units if not unit.is_root]
        root = [unit for unit in units if unit.is_root]
        self._programs = {"forward": _Program(root + inner), "backward": _Program(inner[::-1])}
        self._program: _Program | None = None
        self._ahead: set[int] = set()
        self.exchanging = False
        self._may_prefetch = False

    def begin(self, phase: str) -> None:
        """A forward of the model, or a backward, begins."""
        self._program = self._programs[phase]
        self._program.cursor = 0
        self._program.needed = []
        self._ahead = set()

    def end(self) -> bool:
        """It is over: take part in what other ranks may have needed; only the root may stay full.

        Returns whether the other ranks have come so far as well: not so where it never began, or it broke.
        """
        program, self._program = self._program, None
        if program is None:
            return False
        for unit in program.take_rest() if self._exchange.in_step else ():
            self._gather(unit)
            if not unit.is_root:
                self.release(unit)
        if not program.learned:
            program.learn()
        self.release_all(but_root=True)
        return True

    def need(self, unit: Unit, before: Unit | None = None) -> None:
        """Make ``unit`` full; ``before``: it should have been, before that unit."""
        if self._note(unit, before):
            self._may_prefetch = True
        if unit.state is UnitState.SHARDED:
            taken = [unit] if self._program is None else self._program.take_until(unit)
            if not self._exchange.in_step:
                taken = [unit]
            for other in taken:
                self._make_room(other)
                self._gather(other)
                if other is not unit:
                    self._ahead.add(other.index)
        self._finish(unit)
        self._prefetch()

    def release(self, unit: Unit) -> None:
        """The unit's full form goes if it is one that goes."""
        if unit.state is UnitState.FULL and not unit.keep_full:
            with self._at_work():
                self._exchange.release(unit)
            unit.move(UnitState.SHARDED)
            self._prefetch()

    def release_all(self, *, but_root: bool) -> None:
        """Release every unit, also one gathered ahead that nobody used."""
        for unit in self._units:
            self._finish(unit)
            if not (but_root and unit.is_root):
                self.release(unit)

    def mark_stale(self) -> None:
        """Shards have changed: every full form is to be gathered anew."""
        for unit in self._units:
            self._finish(unit)
            self.release(unit)
            if unit.state is UnitState.FULL:
                unit.move(UnitState.SHARDED)

    def _make_room(self, unit: Unit) -> None:
        """Under a budget: what was gathered for others' sake goes first, in the hope that it isn't needed here."""
        passed = [] if self._program is None else self._program.units[: self._program.cursor]
        for other in passed:
            if self._exchange.has_room(unit, waiting=True):  # the same on all ranks, however far each is
                return
            if other is not unit and other.index in self._ahead and other.state is UnitState.FULL:
                self.release(other)

    def _note(self, unit: Unit, before: Unit | None) -> bool:
        """Whether this is the first need of the unit since it was gathered; needs are what a program is made of."""
        first = unit.state is not UnitState.FULL or unit.index in self._ahead
        if self._program is not None and first:
            needed = self._program.needed
            at = len(needed) if before not in needed else len(needed) - 1 - needed[::-1].index(before)
            needed.insert(at, unit)
        self._ahead.discard(unit.index)
        return first

    def _prefetch(self) -> None:
        """One unit ahead of each need, when there is room."""
        program = self._program
        if self._may_prefetch and program is not None and program.learned and program.cursor < len(program.units):
            following = program.units[program.cursor]
            if following.state is UnitState.SHARDED and self._exchange.has_room(following):
                self._may_prefetch = False
                program.cursor += 1
                self._ahead.add(following.index)
                self._start(following)

    def _gather(self, unit: Unit) -> None:
        """Take part in the gather of ``unit``, even if this rank has it still."""
        self._finish(unit)
        if unit.state is UnitState.FULL:
            if unit.keep_full:
                return
            with self._at_work():
                self._exchange.release(unit)
            unit.move(UnitState.SHARDED)
        self._start(unit)
        self._finish(unit)

    def _start(self, unit: Unit) -> None:
        unit.move(UnitState.GATHERING)
        with self._at_work():
            self._exchange.start_gather(unit)

    def _finish(self, unit: Unit) -> None:
        if unit.state is not UnitState.GATHERING:
            return
        try:
            with self._at_work():
                self._exchange.finish_gather(unit)
        except PeerLost:
            self._program = None
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
