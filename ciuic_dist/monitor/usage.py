"""Bytes of one tier on one rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierUsage:
    """Bytes in use now, the most ever in use, and the budget (None: unlimited)."""

    used: int
    peak: int
    budget: int | None = None
