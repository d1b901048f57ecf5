"""Ranks that share no memory: one gather a unit before use, one reduce after backward.

Under a budget a rank has copies of the other ranks' slices, in the same memory as its shards. At stage 3 a copy is
there while its unit is used; below it comes and goes like a shard until the next update, which outdates it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from ciuic_dist.comm import collectives
from ciuic_dist.comm.collectives import Flight
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.comm.own_groups import end_groups, end_with
from ciuic_dist.planning.flight import REDUCTIONS_IN_FLIGHT
from ciuic_dist.sharding.exchange import spilled
from ciuic_dist.sharding.exchange.base import Traffic
from ciuic_dist.sharding.exchange.replicas import Replicas
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.spill import Spill
from ciuic_dist.sharding.unit import Unit


class CollectiveExchange:
    """Parameters and gradients over torch.distributed."""

    def __init__(self, mesh: Mesh, *, stage: int, spill: Spill | None = None) -> None:
        self.traffic = Traffic()
        self.gathers = stage > 0 or spill is not None
        self.keeps_full = stage < 3 and spill is None
        self.in_step = stage > 0
        self.own_order = False
        self.together = self.in_step and not self.keeps_full
        self.reduces_at_once = False
        self.has_peers = True
        self._world = mesh.size
        self._ranks = mesh.size * mesh.replicas
        self._stage = stage
        self._spill = spill
        # Reductions start when a rank has its gradients, gathers when it needs a unit, and under a budget when its
        # shard has come: each kind has one order on all ranks, all together and the caller's own don't.
        self._reducing = mesh.new_sharding()
        self._gathering = None if spill is None and mesh.replicas == 1 else mesh.new_sharding()
        self._replicas = Replicas(mesh) if mesh.replicas > 1 else None
        self._flats: Sequence[Flat] = ()
        self._outdated: set[int] = set()
        self._unsent: deque[Unit] = deque()
        self._gathers: dict[int, list[Flight]] = {}
        self._reduces: deque[tuple[Flat, Flight]] = deque()
        self._reduced: list[Flat] = []
        self._last = True
        self._kept: dict[int, Tensor] = {}
        self._groups = [group for group in (self._reducing, self._gathering) if group is not None]
        self._end = end_with(self, self._groups, partial(_under_way, self._gathers, self._reduces))

    def place(self, flats: Sequence[Flat]) -> None:
        """Stage 3 keeps shards and gives full forms no memory yet; below, shards are views of full forms.

        Under a budget all are, and full forms but the root's come and go.
        """
        self._flats = flats
        self._outdate()
        for flat in flats:
            if self._spill is not None and flat.spills:
                self._spill.house(flat, copies_stay=self._stage < 3)
                continue
            full = torch.empty(flat.layout.numel, dtype=flat.compute_dtype, device=flat.device)
            if self._resizes:
                flat.place(full, full[flat.shard_range].clone())
                full.untyped_storage().resize_(0)
            else:
                flat.place(full)

    def start_gather(self, unit: Unit) -> None:
        """Bring what this rank has of the unit, make room for the rest, and send in turn."""
        spilled.take(unit)
        self._unsent.append(unit)
        self._send_arrived()

    def finish_gather(self, unit: Unit) -> None:
        """Wait for the others' shards."""
        while unit in self._unsent:
            self._send_first()
        for flight in self._gathers.pop(unit.index, []):
            flight.land()
        self._outdated.difference_update(id(flat) for flat in unit.flats)
        spilled.attach(unit)

    def has_room(self, unit: Unit) -> bool:
        """Within the budget; without one, a unit ahead is always allowed."""
        return self._spill is None or self._spill.homes.has_room(spilled.shards_of(unit))

    def release(self, unit: Unit) -> None:
        """Free the full forms."""
        for flat in unit.flats if self._resizes else ():
            flat.full.untyped_storage().resize_(0)
        spilled.let_go(unit)
        self._send_arrived()

    def meet(self) -> None:
        """Every gather is a meeting."""

    def begin(self, order: Sequence[Flat], *, last: bool) -> None:
        """Groups keep what they have summed until the last."""
        self._last = last

    def landing(self, flat: Flat) -> Tensor | None:
        """Full gradients, in the precision they are summed in; stages 0 and 1 keep the buffer if they may."""
        if self._stage > 1 or self._spill is not None:
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
        self._send_arrived()
        # At stage 3 a rank that is behind may itself wait for this rank's next gather, so this one can't wait for it.
        while len(self._reduces) > REDUCTIONS_IN_FLIGHT and (self._stage < 3 or self._reduces[0][1].has_landed()):
            self._finish_oldest()
        replicas = self._replicas
        while replicas is not None and len(replicas) > 1 and (self._stage < 3 or replicas.has_landed):
            self._receive_oldest(replicas)

    def drain(self) -> None:
        """Finish all reductions; one small message tells which parameters any rank has written."""
        while self._reduces:
            self._finish_oldest()
        while self._replicas:
            self._receive_oldest(self._replicas)
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
        """Every rank writes memory of its own; the next gather brings the new shards."""
        self._outdate()
        for flat in self._flats:
            for copy in spilled.copies_of(flat):
                copy.drop()

    def after_update(self) -> None:
        """Nobody is told."""

    def largest(self, number: int) -> int:
        """A small all-reduce."""
        return int(collectives.all_reduce(torch.tensor(number), dist.ReduceOp.MAX))

    def usage(self) -> int:
        """Bytes of shards, of full forms that are there now, of reductions under way and of kept landings.

        What comes and goes within a budget is not among them.
        """
        shards = sum(flat.shard.nbytes for flat in self._flats) if self._resizes else 0
        full = sum(flat.full.untyped_storage().nbytes() for flat in self._flats if flat.home is None)
        buffers = {id(buffer): buffer.nbytes for _, flight in self._reduces for buffer in flight.buffers}
        kept = {id(buffer): buffer.nbytes for buffer in self._kept.values()}
        summing = 0 if self._replicas is None else self._replicas.nbytes
        return shards + full + sum((buffers | kept).values()) + summing

    def shared_bytes(self) -> int:
        """None."""
        return 0

    def close(self) -> None:
        """All ranks do so, and nothing is under way; the default group is the caller's."""
        if self._end.detach():
            end_groups(self._groups)
        if self._replicas is not None:
            self._replicas.close()

    @property
    def _resizes(self) -> bool:
        """Whether full forms are freed between uses."""
        return self._stage == 3 and self._spill is None

    def _outdate(self) -> None:
        if self._stage > 0:
            self._outdated = {id(flat) for flat in self._flats}

    def _send_arrived(self) -> None:
        while self._unsent and spilled.arrived(self._unsent[0]):
            self._send_first()

    def _send_all(self) -> None:
        """Before a wait for others, which may wait for these."""
        while self._unsent:
            self._send_first()

    def _send_first(self) -> None:
        unit = self._unsent[0]
        spilled.finish(unit)  # where that raises it does so again
        spilled.show(unit)
        self._unsent.popleft()
        gathered = [flat for flat in unit.flats if self._stage == 3 or id(flat) in self._outdated]
        self._gathers[unit.index] = [self._send(flat) for flat in gathered]

    def _send(self, flat: Flat) -> Flight:
        if self._resizes:
            flat.full.untyped_storage().resize_(flat.full_bytes)
        for copy in spilled.copies_of(flat):
            copy.changing()
        self.traffic.gathers += 1
        self.traffic.gathered_bytes += flat.full_bytes - flat.shard.nbytes
        return collectives.start_gather(flat.full, flat.shard, f"the gather of {flat.name}", self._gathering)

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
        self._send_all()
        flat, flight = self._reduces.popleft()
        flight.land()
        landed = flight.buffers[0]
        sources = landed.chunk(landed.numel() // flat.layout.shard_numel)
        self._reduced.append(flat)
        if self._replicas is None or not self._last:
            stays = self._replicas is None or self._replicas.begins_apart(flat)
            flat.receive_part(sources, self._ranks, replace=not stays)
        else:
            self.traffic.reduced_bytes += self._replicas.submit(flat, sources, self._ranks, written=())

    def _receive_oldest(self, replicas: Replicas) -> None:
        self._send_all()
        flat, gradients, _ = replicas.land()
        flat.receive_part([gradients], 1, replace=True)


def _under_way(gathers: dict[int, list[Flight]], reduces: deque[tuple[Flat, Flight]]) -> list[Flight]:
    return [flight for flights in gathers.values() for flight in flights] + [flight for _, flight in reduces]
