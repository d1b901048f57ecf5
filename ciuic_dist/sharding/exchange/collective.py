"""Ranks that share no memory: one gather a unit before use, one reduce after backward."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ciuic_dist.comm import collectives
from ciuic_dist.comm.collectives import Flight
from ciuic_dist.comm.groups import timeout_seconds
from ciuic_dist.sharding.exchange.base import Traffic
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.unit import Unit

_IN_FLIGHT = 2
"""Reductions under way at once: one on the wire while the next unit's backward computes."""


class CollectiveExchange:
    """Parameters and gradients over torch.distributed."""

    def __init__(self, *, world: int, stage: int) -> None:
        self.traffic = Traffic()
        self.gathers = stage > 0
        self.keeps_full = stage < 3
        self.in_step = True
        self.reduces_at_once = False
        self.has_peers = True
        self._world = world
        self._stage = stage
        # Reductions start when a rank has its gradients, gathers when it needs a unit: each kind has one order
        # on all ranks, the two together don't.
        self._reducing = dist.new_group(timeout=timedelta(seconds=timeout_seconds()))
        self._flats: Sequence[Flat] = ()
        self._gathers: dict[int, list[Flight]] = {}
        self._reduces: deque[tuple[Flat, Flight]] = deque()
        self._reduced: list[Flat] = []
        self._kept: dict[int, Tensor] = {}

    def place(self, flats: Sequence[Flat]) -> None:
        """Stage 3 keeps shards and gives full forms no memory yet; below, shards are views of full forms."""
        self._flats = flats
        for flat in flats:
            full = torch.empty(flat.layout.numel, dtype=flat.compute_dtype, device=flat.device)
            if self._stage == 3:
                flat.place(full, full[flat.shard_range].clone())
                full.untyped_storage().resize_(0)
            else:
                flat.place(full)

    def start_gather(self, unit: Unit) -> None:
        """Send this rank's shards, make room for the others'."""
        flights = []
        for flat in unit.flats:
            if self._stage == 3:
                flat.full.untyped_storage().resize_(flat.full_bytes)
            flights.append(collectives.start_gather(flat.full, flat.shard, f"the gather of {flat.name}"))
            self.traffic.gathers += 1
            self.traffic.gathered_bytes += flat.full_bytes - flat.shard.nbytes
        self._gathers[unit.index] = flights

    def finish_gather(self, unit: Unit) -> None:
        """Wait for the others' shards."""
        for flight in self._gathers.pop(unit.index, []):
            flight.land()

    def has_room(self, unit: Unit, *, waiting: bool = False) -> bool:
        """One unit ahead is always allowed."""
        return True

    def release(self, unit: Unit) -> None:
        """Free the full forms."""
        for flat in unit.flats:
            flat.full.untyped_storage().resize_(0)

    def begin(self, order: Sequence[Flat]) -> None:
        """Nothing to prepare."""

    def landing(self, flat: Flat) -> Tensor | None:
        """Full gradients, in the precision they are summed in; stages 0 and 1 keep the buffer."""
        if self._stage > 1:
            return torch.empty(flat.layout.numel, dtype=flat.master_dtype, device=flat.device)
        if id(flat) not in self._kept:
            self._kept[id(flat)] = torch.empty(flat.layout.numel, dtype=flat.master_dtype, device=flat.device)
        return self._kept[id(flat)]

    def submit(self, flat: Flat) -> None:
        """Start the reduction; finish the one before the last."""
        if flat.landing is None:
            flat.landing = self.landing(flat)
        assert flat.landing is not None
        flat.zero_unwritten()
        if flat.landing.dtype != flat.master_dtype:
            flat.landing = flat.landing.to(flat.master_dtype)
        self._reduces.append((flat, self._start(flat, flat.landing)))
        flat.landing = None
        self.traffic.reduces += 1
        # At stage 3 a rank that is behind may itself wait for this rank's next gather, so this one can't wait for it.
        while len(self._reduces) > _IN_FLIGHT and (self._stage < 3 or self._reduces[0][1].has_landed()):
            self._finish_oldest()

    def drain(self) -> None:
        """Finish all reductions; one small message tells which parameters any rank has written."""
        while self._reduces:
            self._finish_oldest()
        written = [flag for flat in self._reduced for flag in flat.written]
        if written:
            flags = torch.tensor(written, dtype=torch.uint8)
            agreed = iter(collectives.all_reduce(flags, dist.ReduceOp.MAX).tolist())
            for flat in self._reduced:
                flags_of_flat = [bool(next(agreed)) for _ in flat.written]
                flat.clear_written()
                flat.received(flags_of_flat)
        self._reduced = []

    def before_update(self) -> None:
        """Every rank writes memory of its own."""

    def after_update(self) -> None:
        """The next gather brings the new shards."""

    def largest(self, number: int) -> int:
        """A small all-reduce."""
        return int(collectives.all_reduce(torch.tensor(number), dist.ReduceOp.MAX))

    def usage(self) -> int:
        """Bytes of shards, of full forms that are there now, of reductions under way and of kept landings."""
        shards = sum(flat.shard.nbytes for flat in self._flats) if self._stage == 3 else 0
        full = sum(flat.full.untyped_storage().nbytes() for flat in self._flats)
        buffers = {id(buffer): buffer.nbytes for _, flight in self._reduces for buffer in flight.buffers}
        kept = {id(buffer): buffer.nbytes for buffer in self._kept.values()}
        return shards + full + sum((buffers | kept).values())

    def shared_bytes(self) -> int:
        """None."""
        return 0

    def in_flight(self) -> int:
        """At stage 3 the root, the unit in use and the one ahead."""
        sizes = sorted((flat.full_bytes for flat in self._flats), reverse=True)
        return sum(sizes[:3]) if self._stage == 3 else 0

    def close(self) -> None:
        """The process group is the caller's."""

    def _start(self, flat: Flat, landing: Tensor) -> Flight:
        purpose = f"the gradients of {flat.name}"
        if self._stage == 0:
            self.traffic.reduced_bytes += landing.nbytes
            return collectives.start_all_reduce(landing, purpose, self._reducing)
        self.traffic.reduced_bytes += landing.nbytes - landing.nbytes // self._world
        if landing.device.type == "cpu":
            return collectives.start_exchange(landing, purpose, self._reducing)
        return collectives.start_reduce_scatter(landing, purpose, self._reducing)

    def _finish_oldest(self) -> None:
        flat, flight = self._reduces.popleft()
        flight.land()
        landed = flight.buffers[0]
        sources = landed.chunk(landed.numel() // flat.layout.shard_numel)
        flat.receive_part(sources, self._world)
        self._reduced.append(flat)
