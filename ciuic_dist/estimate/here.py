"""The machine that the ranks run on, and what is known of it."""

from __future__ import annotations

from dataclasses import replace

from ciuic_dist.comm.groups import device
from ciuic_dist.estimate.cache import Cache
from ciuic_dist.estimate.calls import Clock, Seen
from ciuic_dist.estimate.probe import probe, room
from ciuic_dist.memory.budget import Memory
from ciuic_dist.planning.machine import Machine


class Here:
    """As it was measured before, or is now. Every rank makes one and calls the same."""

    def __init__(self, memory: Memory, seen: Seen | None = None) -> None:
        """``memory``: whose folder for NVMe is measured, if there is one. Raises BudgetError for one that can't be.

        ``seen``: how long operators took in training; each kind counts as so much slower than when it is alone.
        """
        self._cache = Cache()
        self.machine = _machine(self._cache.machine, memory)
        self.clock = Clock(self._cache.operators, seen) if device().type == "cpu" else None
        """Where operators are timed one by one: on CPUs."""

    def remember(self) -> None:
        """For the next time."""
        self._cache.keep(self.machine, self.clock.known if self.clock else {})


def _machine(known: Machine | None, memory: Memory) -> Machine:
    budgets = Memory(nvme=memory.nvme).resolve(1)
    wanted = budgets.nvme or 0
    if known is not None and (known.read or not wanted):
        return replace(known, nvme=wanted, **room())
    return probe(budgets.folder, wanted)
