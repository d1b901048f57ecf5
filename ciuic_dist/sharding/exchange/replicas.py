"""The last part of a reduction where several groups of ranks each have a replica: adding up what each has summed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ciuic_dist.comm import collectives
from ciuic_dist.comm.collectives import Flight
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.comm.own_groups import end_groups, end_with
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.summing import mean_into


class Summed(NamedTuple):
    """Over all ranks: a shard's gradients, and of each parameter whether any rank has written one."""

    flat: Flat
    gradients: Tensor
    written: list[bool]


class Replicas:
    """Sums shards over the ranks that hold the same, one after the other, in the order of ``submit``."""

    def __init__(self, mesh: Mesh) -> None:
        """Collective over all ranks."""
        self._keeps = mesh.replica == 0
        self._summed: set[int] = set()
        self._group = mesh.new_replication()
        self._flats: deque[Flat] = deque()
        self._flights: deque[Flight] = deque()
        self._end = end_with(self, [self._group], self._flights.copy)

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._flights)

    def begins_apart(self, flat: Flat) -> bool:
        """Gradients of this group alone come; whether what the flat has received stays: one group keeps all groups'."""
        stays = self._keeps or id(flat) not in self._summed
        self._summed.discard(id(flat))
        return stays

    def submit(self, flat: Flat, sources: Sequence[Tensor], ranks: int, written: Sequence[bool]) -> int:
        """Begin to add the other groups' gradients of a shard to this one's; returns the bytes that are sent.

        This group's are what the flat has received, and the sum of ``sources``, 1-D, divided by ``ranks``. ``written``:
        of which parameters there are any in ``sources``.
        """
        numel = flat.layout.shard_numel
        both = torch.empty(numel + len(written), dtype=flat.master_dtype, device=flat.device)
        mean_into(both[:numel], sources, ranks, accumulate=False)
        if self.begins_apart(flat):
            flat.add_received(both[:numel])
        touched = [new or old for new, old in zip(written, flat.touched, strict=False)]
        both[numel:] = torch.tensor(touched, dtype=both.dtype)
        purpose = f"the gradients of {flat.name} on other groups' ranks"
        self._flats.append(flat)
        self._flights.append(collectives.start_all_reduce(both, purpose, self._group))
        return both.nbytes

    @property
    def has_landed(self) -> bool:
        """Whether ``land`` would return at once."""
        return self._flights[0].has_landed()

    def land(self) -> Summed:
        """The oldest. Raises PeerLost."""
        flat, flight = self._flats.popleft(), self._flights.popleft()
        flight.land()
        self._summed.add(id(flat))
        [both] = flight.buffers
        numel = flat.layout.shard_numel
        return Summed(flat, both[:numel], [count != 0 for count in both[numel:].tolist()])

    @property
    def nbytes(self) -> int:
        """Of what is under way."""
        return sum(buffer.nbytes for flight in self._flights for buffer in flight.buffers)

    def close(self) -> None:
        """All ranks do so; where something is under way, whose peers may be gone, the group stays."""
        if all(flight.has_landed() for flight in self._flights) and self._end.detach():
            end_groups([self._group])
