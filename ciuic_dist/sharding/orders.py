"""In which order a pass of the model gathers its units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ciuic_dist.comm.groups import gather_objects
from ciuic_dist.planning.foresight import Foresight
from ciuic_dist.sharding.unit import Unit


class Order(Protocol):
    """Told of every need of a pass; tells what to gather for it, and ahead of the next."""

    def begin(self, phase: str) -> None:
        """A forward of the model, or a backward, begins."""
        ...

    def need(self, unit: Unit, before: Unit | None) -> None:
        """``unit`` is needed, first since it was gathered; ``before``: it should have been, before that unit."""
        ...

    def take_until(self, unit: Unit) -> list[Unit]:
        """What to gather now so that ``unit`` is."""
        ...

    def following(self) -> Unit | None:
        """What may be gathered ahead of the next need."""
        ...

    def rest(self) -> list[Unit]:
        """What no need has come to, and is gathered all the same."""
        ...

    def end(self) -> None:
        """The pass is over."""
        ...

    def guesses(self) -> tuple[int, int]:
        """How many of the next unit were made, and how many of them were right."""
        ...


class AgreedOrder:
    """The same on every rank: first the model's own, from the second pass on that of rank 0's needs in the first.

    A collective matches the other ranks' by its position alone. A rank that needs a unit gathers everything up to it;
    at the end it takes part in what is left.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        inner = [unit for unit in units if not unit.is_root]
        root = [unit for unit in units if unit.is_root]
        self._programs = {"forward": root + inner, "backward": inner[::-1]}
        self._learned: set[str] = set()
        self._phase = "forward"
        self._cursor = 0
        self._needed: list[Unit] = []

    @property
    def _units(self) -> list[Unit]:
        return self._programs[self._phase]

    def begin(self, phase: str) -> None:
        """See Order."""
        self._phase, self._cursor, self._needed = phase, 0, []

    def need(self, unit: Unit, before: Unit | None) -> None:
        """See Order."""
        needed = self._needed
        at = len(needed) if before not in needed else len(needed) - 1 - needed[::-1].index(before)
        needed.insert(at, unit)

    def take_until(self, unit: Unit) -> list[Unit]:
        """See Order; a further use than the program knows is gathered on the spot."""
        if unit not in self._units[self._cursor :]:
            return [unit]
        end = self._units.index(unit, self._cursor) + 1
        taken, self._cursor = self._units[self._cursor : end], end
        return taken

    def following(self) -> Unit | None:
        """See Order."""
        known = self._phase in self._learned and self._cursor < len(self._units)
        return self._units[self._cursor] if known else None

    def rest(self) -> list[Unit]:
        """See Order."""
        taken, self._cursor = self._units[self._cursor :], len(self._units)
        return taken

    def end(self) -> None:
        """See Order: rank 0's; units it didn't need come last, for the ranks that do."""
        if self._phase in self._learned:
            return
        self._learned.add(self._phase)
        by_index = {unit.index: unit for unit in (*self._units, *self._needed)}
        order = gather_objects([unit.index for unit in self._needed])[0]
        missing = [unit for unit in self._units if unit.index not in order]
        self._programs[self._phase] = [by_index[index] for index in order] + missing

    def guesses(self) -> tuple[int, int]:
        """See Order: none."""
        return 0, 0


class OwnOrder:
    """This rank's alone: what it needs, when it needs it, and ahead of that what it is foreseen to need."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._foresight = Foresight()
        self._units = {unit.index: unit for unit in units}

    def begin(self, phase: str) -> None:
        """See Order."""
        self._foresight.begin(phase)

    def need(self, unit: Unit, before: Unit | None) -> None:
        """See Order."""
        self._foresight.need(unit.index, None if before is None else before.index)

    def take_until(self, unit: Unit) -> list[Unit]:
        """See Order."""
        return [unit]

    def following(self) -> Unit | None:
        """See Order."""
        index = self._foresight.next()
        return None if index is None else self._units[index]

    def rest(self) -> list[Unit]:
        """See Order: nothing."""
        return []

    def end(self) -> None:
        """See Order."""
        self._foresight.end()

    def guesses(self) -> tuple[int, int]:
        """See Order."""
        return self._foresight.guesses, self._foresight.right
