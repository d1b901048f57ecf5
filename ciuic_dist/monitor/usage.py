"""Bytes of one tier on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from ciuic_dist.monitor.units import size_text


@dataclass(frozen=True, slots=True)
class TierUsage:
    """Bytes in use now, the most ever in use, and the budget (None: unlimited)."""

    used: int
    peak: int
    budget: int | None = None

    def __str__(self) -> str:
        """Such as 1.25 MiB of 2.50 MiB (peak 2.00 MiB)."""
        room = "" if self.budget is None else f" of {size_text(self.budget)}"
        return f"{size_text(self.used)}{room} (peak {size_text(self.peak)})"
