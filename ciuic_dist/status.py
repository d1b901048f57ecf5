"""What a sharded model holds and has moved, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ciuic_dist.memory.transfer import LinkStats
from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.spill import Spill


@dataclass(frozen=True, slots=True)
class Spilling:
    """Moves between tiers since the start.

    ``accesses`` to spilled state and gradients: ``hits`` found the page on the device, ``faults`` had to begin its
    fetch; ``unforeseen`` were not in the order of the steps before. ``stall_seconds`` were spent waiting.
    """

    links: dict[str, LinkStats] = field(default_factory=dict)
    stall_seconds: float = 0.0
    accesses: int = 0
    hits: int = 0
    faults: int = 0
    unforeseen: int = 0
    steps: int = 0

    @property
    def hit_rate(self) -> float:
        """Of the accesses; 1 where there were none."""
        return self.hits / self.accesses if self.accesses else 1.0

    @property
    def nvme_bytes_per_step(self) -> float:
        """Bytes written to NVMe a step, on this rank: what wears a drive."""
        written = self.links.get("device->nvme")
        return 0.0 if written is None or not self.steps else written.bytes / self.steps


@dataclass(frozen=True, slots=True)
class Status:
    """One rank's view: bytes by tier, traffic with other ranks and between tiers since the start."""

    tiers: dict[str, TierUsage]
    gathers: int
    gathered_bytes: int
    reduces: int
    reduced_bytes: int
    spilling: Spilling


def status(model: nn.Module) -> Status:
    """Bytes that parameters, gradients and optimizer state take on this rank, and traffic so far.

    Memory that several ranks map counts in equal parts. Without a budget activations are not counted; with one,
    the device's peak includes the most they took in the first steps.
    """
    sharded = sharded_of(model)
    spill, traffic = sharded.spill, sharded.exchange.traffic
    used = sharded.usage()
    budget = None if spill is None else spill.budget
    return Status(
        {"device": TierUsage(used, max(used, sharded.peak), budget)} | ({} if spill is None else spill.lower_tiers()),
        traffic.gathers,
        traffic.gathered_bytes,
        traffic.reduces,
        traffic.reduced_bytes,
        Spilling() if spill is None else _spilling(spill),
    )


def _spilling(spill: Spill) -> Spilling:
    moved, pagers = spill.transfers.stats, (spill.states, spill.gradients)
    return Spilling(
        dict(moved.links),
        moved.stall_seconds,
        sum(pager.counts.accesses for pager in pagers),
        sum(pager.counts.hits for pager in pagers),
        sum(pager.counts.faults for pager in pagers),
        sum(pager.counts.unforeseen for pager in pagers),
        spill.steps,
    )
