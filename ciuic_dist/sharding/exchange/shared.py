"""Ranks of one host: parameters lie once in the common segment, gradients are read from mailboxes.

A gather is nothing but knowing that every owner has finished its slice, which ``after_update`` waits for.
Gradients: a rank writes a flat's gradients into its own mailbox and rings READY; every rank then sums its
slice over all mailboxes and rings READ; a slot is written anew when all have READ its last tenant. Flats
follow each other in one order on all ranks, so counting rings is enough to know which flat is meant, and
everything about one flat waits only for things about earlier flats: it can't deadlock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ciuic_dist.comm.collectives import all_reduce
from ciuic_dist.comm.doorbell import Bell
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.comm.shared import SharedPool
from ciuic_dist.memory.host import allocate
from ciuic_dist.sharding.exchange import spilled
from ciuic_dist.sharding.exchange.base import Traffic
from ciuic_dist.sharding.exchange.board import Board, BoardLayout
from ciuic_dist.sharding.exchange.claims import Claims
from ciuic_dist.sharding.exchange.mailbox import MailboxLayout
from ciuic_dist.sharding.exchange.replicas import Replicas
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.spill import Spill
from ciuic_dist.sharding.unit import Unit


class SharedExchange:
    """Parameters and gradients through memory that all ranks map."""

    def __init__(
        self,
        pool: SharedPool,
        mailbox: MailboxLayout,
        board: BoardLayout,
        mesh: Mesh,
        *,
        share_full: bool,
        spill: Spill | None = None,
    ) -> None:
        """``share_full``: one full form for the ranks of a group (stages 1 to 3); else each keeps its own (stage 0).

        Under a budget, ``spill``, each rank brings its slices of the full forms and takes them away.
        """
        self.traffic = Traffic()
        self.gathers = spill is not None
        self.keeps_full = spill is None
        self.reduces_at_once = True
        self.has_peers = True
        self._spill = spill
        self._boards = boards = [Board(board, box) for box in pool.mailboxes]
        self._claims: Claims | None = None
        if spill is not None and share_full:
            self._claims = Claims(pool.doorbell, board, boards, mesh.place, spill.homes)
        self.in_step = False
        self.own_order = True
        self.together = self._claims is not None
        self._pool = pool
        self._mailbox = mailbox
        self._mesh = mesh
        self._rank = mesh.place
        self._replicas = Replicas(mesh) if mesh.replicas > 1 else None
        self._share_full = share_full
        self._flats: Sequence[Flat] = ()
        self._order: Sequence[Flat] = ()
        self._last = True
        self._submitted = 0
        self._sequence = 0
        self._agreements = 0
        self._last_in_slot: dict[int, int] = {}
        self._last_of_flat: dict[int, int] = {}
        self._pending: deque[tuple[int, Flat]] = deque()

    def place(self, flats: Sequence[Flat]) -> None:
        """Full forms that stay lie in the common segment, one after the other; shards are views of them."""
        self._flats = flats
        files = self._pool.frames if self._share_full else self._pool.frames[self._rank :][:1]
        offset = 0
        for flat in flats:
            if self._spill is not None and flat.spills:
                self._spill.house_shared(flat, files)
            elif self._share_full:
                memory = self._pool.common[offset : offset + flat.full_bytes]
                offset += page_rounded(flat.full_bytes)
                flat.place(memory.view(flat.compute_dtype))
            else:
                flat.place(allocate(flat.layout.numel, flat.compute_dtype, flat.device))

    def start_gather(self, unit: Unit) -> None:
        """Ask for all ranks' slices; a unit that stays is complete since the last update."""
        if self._claims is not None and spilled.shards_of(unit):
            self._claims.claim(unit)
        else:
            spilled.take(unit)

    def finish_gather(self, unit: Unit) -> None:
        """Wait for them."""
        if self._claims is not None and spilled.shards_of(unit):
            self._claims.finish(unit)
            spilled.show_all(unit, self._claims.frames)
        else:
            spilled.finish(unit)
            spilled.show(unit)
        spilled.attach(unit)

    def has_room(self, unit: Unit) -> bool:
        """Within the budget, and without waiting."""
        if self._claims is not None:
            return self._claims.has_room(unit)
        return self._spill is None or self._spill.homes.has_room(spilled.shards_of(unit))

    def release(self, unit: Unit) -> None:
        """The slices may go when no rank needs them."""
        if self._claims is not None and spilled.shards_of(unit):
            spilled.hide(unit)
            self._claims.release(unit)
        else:
            spilled.let_go(unit)

    def meet(self) -> None:
        """Wait until every rank has come here: till then it may need this rank's slices."""
        if self._claims is not None:
            count = self._pool.doorbell.ring(Bell.MET)
            self._pool.doorbell.wait(Bell.MET, count, "at the end of a forward or backward")

    def begin(self, order: Sequence[Flat], *, last: bool) -> None:
        """Slots are dealt out in turn, in the order of submission. Groups keep what they have summed until the last."""
        self._last = last
        self._order = order
        self._submitted = 0
        self._mailbox.deal(order)

    def landing(self, flat: Flat) -> Tensor | None:
        """The flat's slot in this rank's mailbox, if the flats that use it earlier have been submitted."""
        if not self._mailbox.is_next_tenant(flat, self._order[self._submitted :]):
            return None
        return self._claim(flat)

    def submit(self, flat: Flat) -> None:
        """Publish the gradients, and reduce what all ranks have published already."""
        slot = self._claim(flat)
        if flat.landing is not None and flat.landing is not slot and any(flat.written):
            slot.copy_(flat.landing)
            flat.landing = slot
        flat.zero_unwritten()
        flags = self._mailbox.flags(self._pool.mailboxes[self._rank], flat)
        flags.copy_(torch.tensor(flat.written, dtype=torch.bool))
        flat.landing = None
        flat.clear_written()
        self._last_in_slot[self._mailbox.slot(flat)] = self._last_of_flat[id(flat)] = self._sequence
        self._pending.append((self._sequence, flat))
        self._sequence += 1
        self._submitted += 1
        self._pool.doorbell.ring(Bell.READY)
        while len(self._pending) > 1:
            self._reduce_oldest()

    def drain(self) -> None:
        """Reduce the rest."""
        while self._pending:
            self._reduce_oldest()
        while self._replicas:
            self._receive_oldest(self._replicas)

    def before_update(self) -> None:
        """Wait until every rank has come here: then none computes with the old parameters."""
        count = self._pool.doorbell.ring(Bell.ENTERED)
        self._pool.doorbell.wait(Bell.ENTERED, count, "before updating the parameters")

    def after_update(self) -> None:
        """Wait until every rank has written its slice: then the full forms are complete."""
        count = self._pool.doorbell.ring(Bell.UPDATED)
        self._pool.doorbell.wait(Bell.UPDATED, count, "for the updated parameters")

    def largest(self, number: int) -> int:
        """Through the boards, and among groups by a small all-reduce."""
        self._agreements += 1
        self._boards[self._rank].say(self._agreements, number)
        self._pool.doorbell.ring(Bell.AGREEING)
        self._pool.doorbell.wait(Bell.AGREEING, self._agreements, "to agree on what a step needs")
        largest = max(board.said(self._agreements) for board in self._boards)
        return largest if self._replicas is None else int(all_reduce(torch.tensor(largest), dist.ReduceOp.MAX))

    def usage(self) -> int:
        """This rank's mailbox, its share of the common segment (all of the full forms at stage 0), sums under way."""
        under_way = 0 if self._replicas is None else self._replicas.nbytes
        return self._mailbox.nbytes + self._full_bytes + under_way

    def shared_bytes(self) -> int:
        """The mailbox and, but for stage 0, full forms."""
        return self._mailbox.nbytes + (self._full_bytes if self._share_full else 0)

    def close(self) -> None:
        """Hang up."""
        self._pool.doorbell.close()
        if self._replicas is not None:
            self._replicas.close()

    @property
    def _full_bytes(self) -> int:
        full = sum(flat.full_bytes for flat in self._flats if flat.home is None)
        return full // self._mesh.size if self._share_full else full

    def _claim(self, flat: Flat) -> Tensor:
        """The flat's slot, once every rank has read its last tenant, and the flat's last flags."""
        last = max(self._last_in_slot.get(self._mailbox.slot(flat), -1), self._last_of_flat.get(id(flat), -1))
        while self._pending and self._pending[0][0] <= last:
            self._reduce_oldest()
        self._pool.doorbell.wait(Bell.READ, last + 1, f"to write the gradients of {flat.name}")
        return self._mailbox.view(self._pool.mailboxes[self._rank], flat)

    def _reduce_oldest(self) -> None:
        sequence, flat = self._pending.popleft()
        self._pool.doorbell.wait(Bell.READY, sequence + 1, f"for the gradients of {flat.name}")
        flags = [self._mailbox.flags(box, flat) for box in self._pool.mailboxes]
        writers = [box for box, flag in zip(self._pool.mailboxes, flags, strict=True) if flag.any()]
        sources = [self._mailbox.view(box, flat)[flat.shard_range] for box in writers]
        written = torch.stack(flags).any(dim=0).tolist()
        self.traffic.reduces += 1
        self.traffic.reduced_bytes += sum(source.nbytes for source in sources)
        ranks = self._mesh.size * self._mesh.replicas
        if self._replicas is None or not self._last:
            stays = self._replicas is None or not sources or self._replicas.begins_apart(flat)
            flat.receive(sources, ranks, written, replace=not stays)
        else:
            self.traffic.reduced_bytes += self._replicas.submit(flat, sources, ranks, written)
        self._pool.doorbell.ring(Bell.READ)
        while self._replicas is not None and len(self._replicas) > 1:
            self._receive_oldest(self._replicas)

    def _receive_oldest(self, replicas: Replicas) -> None:
        self._pool.doorbell.attend_until(lambda: replicas.has_landed)
        flat, gradients, written = replicas.land()
        flat.receive([gradients], 1, written, replace=True)


def page_rounded(nbytes: int) -> int:
    """``nbytes`` up to whole pages."""
    return -(-nbytes // 4096) * 4096
