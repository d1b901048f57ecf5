"""What a sharded model holds and has moved, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.sharding.exchange.base import Traffic
from ciuic_dist.sharding.registry import sharded_of


@dataclass(frozen=True, slots=True)
class Status:
    """One rank's view: bytes by tier, and traffic with other ranks since the start."""

    tiers: dict[str, TierUsage]
    gathers: int
    gathered_bytes: int
    reduces: int
    reduced_bytes: int


def status(model: nn.Module) -> Status:
    """Bytes that parameters, gradients and optimizer state take on this rank, and traffic so far.

    Memory that several ranks map counts in equal parts. Activations are not counted.
    """
    sharded = sharded_of(model)
    used = sharded.usage()
    traffic: Traffic = sharded.exchange.traffic
    return Status(
        {"device": TierUsage(used, max(used, sharded.peak))},
        traffic.gathers,
        traffic.gathered_bytes,
        traffic.reduces,
        traffic.reduced_bytes,
    )
