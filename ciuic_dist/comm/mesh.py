"""Which ranks shard among themselves, and which hold the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ciuic_dist.comm.groups import device, rank, world_size
from ciuic_dist.comm.own_groups import end_groups, new_group


class Mesh:
    """All ranks, in rank order, in groups of ``size``: each group shards one replica of the model.

    Hybrid sharding: Y. Zhao et al., "PyTorch FSDP", 2023; Z. Zhang et al., "MiCS", 2022.
    """

    def __init__(self, size: int | None = None) -> None:
        """``size`` None: all ranks are one group. Raises ValueError where groups of that size leave ranks over."""
        world = world_size()
        if size is not None and (size < 1 or world % size):
            raise ValueError(f"group={size} doesn't divide the {world} ranks: give a divisor, or None for all of them")
        self.size = size or world

    @property
    def replicas(self) -> int:
        """How many groups there are."""
        return world_size() // self.size

    @property
    def place(self) -> int:
        """This rank's in its group: which shard it has."""
        return rank() % self.size

    @property
    def replica(self) -> int:
        """Which group this rank is in."""
        return rank() // self.size

    @property
    def first(self) -> int:
        """The first rank of this group."""
        return rank() - self.place

    @contextmanager
    def sharding(self) -> Iterator[dist.ProcessGroup | None]:
        """This rank's group, for a while; None, the default one, where that is all ranks. Collective over all."""
        if self.replicas == 1:
            yield None
            return
        with _for_a_while(self.new_sharding()) as group:
            yield group

    @contextmanager
    def replication(self) -> Iterator[dist.ProcessGroup]:
        """Those that hold what this rank holds, for a while. Collective over all ranks."""
        with _for_a_while(self.new_replication()) as group:
            yield group

    def new_sharding(self) -> dist.ProcessGroup:
        """This rank's group, for operations that don't wait for those of others. Collective over all ranks."""
        return new_group([[*range(first, first + self.size)] for first in range(0, world_size(), self.size)])

    def new_replication(self) -> dist.ProcessGroup:
        """Of those that hold what this rank holds. Collective over all ranks."""
        return new_group([[*range(place, world_size(), self.size)] for place in range(self.size)])


@contextmanager
def _for_a_while(group: dist.ProcessGroup) -> Iterator[dist.ProcessGroup]:
    yield group
    if device().type != "cpu":
        torch.accelerator.synchronize()
    end_groups([group])
