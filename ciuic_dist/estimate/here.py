"""The machine that the ranks run on, and what is known of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ciuic_dist.comm.groups import device
from ciuic_dist.comm.together import on_rank_zero
from ciuic_dist.estimate.cache import Cache
from ciuic_dist.estimate.calls import Clock
from ciuic_dist.estimate.probe import probe, room
from ciuic_dist.memory.budget import Memory
from ciuic_dist.planning.machine import Machine


class Here:
    """As it was measured before, or is now. Every rank makes one and calls the same."""

    def __init__(self, memory: Memory) -> None:
        """``memory``: whose folder for NVMe is measured, if there is one. Raises BudgetError for one that can't be."""
        self._cache = Cache()
        budgets = Memory(nvme=memory.nvme).resolve(1)
        wanted = budgets.nvme or 0
        known, drive = self._cache.machine, on_rank_zero(lambda: _drive(budgets.folder))
        if known is not None and (not wanted or drive == self._cache.drive):
            self._drive = self._cache.drive
            self.machine = replace(known, **room(wanted))
        else:
            self._drive = drive
            self.machine = probe(budgets.folder, wanted)
        self.clock = Clock(self._cache.operators) if device().type == "cpu" else None
        """Where operators are timed one by one: on CPUs."""

    def remember(self) -> None:
        """For the next time."""
        self._cache.keep(self.machine, self.clock.known if self.clock else {}, self._drive)


def measure_anew() -> Machine:
    """The machine that the ranks run on, without its drives. Collective.

    What was known of it is forgotten, operators too, and this remembered.
    """
    machine = probe()
    Cache().keep(machine, {})
    return machine


def _drive(folder: Path | None) -> int | None:
    return None if folder is None else folder.stat().st_dev
