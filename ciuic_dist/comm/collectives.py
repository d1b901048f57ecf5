"""Gathering shards and reducing gradients over torch.distributed, started now and finished later.

Gloo's own all-gather and reduce-scatter reach a quarter of what its broadcast and all-to-all reach on the
same link (docs/decisions.md has the figures), so on CPU a gather is a broadcast by each owner, and a reduce
is one all-to-all after which the owner sums its slice in rank order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ciuic_dist.comm.errors import PeerLost
from ciuic_dist.comm.groups import control_group, rank, timeout_seconds, world_size

# torch 2.13 renamed them.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(slots=True)
class Flight:
    """Collectives under way, and the buffers they need until they land."""

    purpose: str
    works: list[Any]
    buffers: list[Tensor] = field(default_factory=list)

    def has_landed(self) -> bool:
        """Whether ``land`` would return at once."""
        return all(work.is_completed() for work in self.works)

    def land(self) -> None:
        """Wait for the data. Raises PeerLost naming the purpose where a peer ended or the timeout passed."""
        try:
            for work in self.works:
                work.wait()
        except RuntimeError as error:
            raise PeerLost(
                f"rank {rank()} lost its peers in {self.purpose} (timeout {timeout_seconds():g} s): {error}"
            ) from error


def start_gather(full: Tensor, shard: Tensor, purpose: str, group: dist.ProcessGroup | None = None) -> Flight:
    """Fill ``full`` with the ``shard`` of each of the ``group``'s ranks, in order; None: of all ranks."""
    if full.device.type != "cpu":
        return Flight(purpose, [_all_gather(full, shard, group=group, async_op=True)])
    slices = full.chunk(dist.get_world_size(group))
    own = slices[dist.get_rank(group)]
    if own.data_ptr() != shard.data_ptr():
        own.copy_(shard)
    raw = [part.view(torch.uint8) for part in slices]  # Gloo doesn't know every dtype
    works = [dist.broadcast(part, group=group, async_op=True, group_src=owner) for owner, part in enumerate(raw)]
    return Flight(purpose, works)


def start_exchange(full: Tensor, purpose: str, group: dist.ProcessGroup) -> Flight:
    """Send slice r of ``full`` to the group's rank r; the flight's ``buffers[0]`` has what came, in order (CPU)."""
    received = torch.empty_like(full)
    return Flight(purpose, [dist.all_to_all_single(received, full, group=group, async_op=True)], [received, full])


def start_reduce_scatter(full: Tensor, purpose: str, group: dist.ProcessGroup) -> Flight:
    """Sum slice r of the ranks' ``full`` on the group's rank r; ``buffers[0]`` of the flight holds it (GPU)."""
    summed = torch.empty(full.numel() // dist.get_world_size(group), dtype=full.dtype, device=full.device)
    return Flight(purpose, [_reduce_scatter(summed, full, group=group, async_op=True)], [summed, full])


def start_all_reduce(full: Tensor, purpose: str, group: dist.ProcessGroup) -> Flight:
    """Sum the ranks' ``full`` in place."""
    return Flight(purpose, [dist.all_reduce(full, group=group, async_op=True)], [full])


def all_reduce(values: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Combine a small CPU tensor over the ranks in place; returns it."""
    if world_size() > 1:
        try:
            dist.all_reduce(values, op=operation, group=control_group())
        except RuntimeError as error:
            raise PeerLost(f"rank {rank()} lost its peers while agreeing on a value: {error}") from error
    return values
