"""A tier in the host's memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.mapping import private
from ciuic_dist.memory.pool import SlotPool
from ciuic_dist.memory.tier import check_access, check_length, slots_usage
from ciuic_dist.monitor.units import size_text
from ciuic_dist.monitor.usage import TierUsage


class RamTier:
    """A Tier over one slab, whose pages may take memory from their first use on only. Content is not checksummed."""

    def __init__(self, name: str, page_bytes: int, slots: int, make_buffer: Callable[[int], Tensor] = private) -> None:
        """``make_buffer``: of so many bytes, for the slab."""
        self.name = name
        self.page_bytes = page_bytes
        self.pool = SlotPool(slots)
        try:
            self._slab = make_buffer(page_bytes * slots)
        except (OSError, RuntimeError) as error:
            raise BudgetError(f"memory.{name}: {size_text(page_bytes * slots)} can't be had: {error}") from error
        self._written: dict[int, int] = {}  # bytes, by slot

    def write(self, slot: int, source: Tensor, name: str) -> None:
        """See Tier."""
        check_access(self.pool, slot, source, self.page_bytes)
        self._content(slot, source.numel()).copy_(source)
        self._written[slot] = source.numel()

    def read(self, slot: int, into: Tensor, name: str) -> None:
        """See Tier."""
        check_access(self.pool, slot, into, self.page_bytes)
        check_length(self._written.get(slot), into, self.name, name)
        into.copy_(self._content(slot, into.numel()))

    def usage(self) -> TierUsage:
        """See Tier."""
        return slots_usage(self.pool, self.page_bytes)

    def close(self) -> None:
        """See Tier."""
        self._slab = self._slab.new_empty(0)

    def _content(self, slot: int, numel: int) -> Tensor:
        return self._slab.narrow(0, slot * self.page_bytes, numel)
