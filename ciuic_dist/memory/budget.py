"""What the user allows each tier to hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Memory:
    """A budget a tier, as text like ``"20GiB"``; for NVMe ``"/folder:500GiB"``. None: no limit, no spilling.

    Spilling to further tiers is not there yet: ``shard`` refuses a budget rather than ignore it.
    """

    device: str | None = None
    host: str | None = None
    nvme: str | None = None
