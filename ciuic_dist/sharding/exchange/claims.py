"""How ranks that share full forms ask each other for the slices of a unit, each whenever it needs it.

A rank that needs a unit claims it. Rank 0 admits the claim when there is room for the unit beside all others that are
claimed; every rank, which keeps the same budget for shards of the same size, then brings its slice, tells where it is
and keeps it until the claim is given up. So whatever units a rank needs, in whatever order, the others provide.

Ranks do their part at each of their own claims and releases and, above all, in every wait for each other. It can't
deadlock. A rank that computes comes to its next wait. Where all wait, all provide, so each claim that is admitted is
granted, since bringing a slice waits for a drive only. While a claim finds no room, those who wait take back what they
claimed ahead of its need; what is left is in use. Then either one of the claims has room, or the units in use and any
one more are too much for the budget, which is an error. Waits for anything else (gradients, the update) are for what
the others do in an order that is the same on all ranks, and a rank leaves a phase only when all have come to its end,
so nobody goes on to where it doesn't provide.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from ciuic_dist.comm.doorbell import RESTS, RUNG, Bell, Doorbell
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.monitor.units import size_text
from ciuic_dist.sharding.exchange import spilled
from ciuic_dist.sharding.exchange.board import Board, BoardLayout
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.homes import Homes
from ciuic_dist.sharding.unit import Unit

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Claims:
    """One rank's part of it."""

    def __init__(
        self, doorbell: Doorbell, layout: BoardLayout, boards: Sequence[Board], rank: int, homes: Homes
    ) -> None:
        """``boards``: one for each rank of the host."""
        self._doorbell = doorbell
        self._units = layout.units
        self._boards = boards
        self._own = boards[rank]
        self._rank = rank
        self._homes = homes
        self._ahead: list[Unit] = []
        self._provided: dict[tuple[int, int], int] = {}  # by rank and unit: the claim for which the shards stay
        doorbell.attend = self._attend_in_wait
        doorbell.pulse = self._own.pulse

    def claim(self, unit: Unit) -> None:
        """Ask for the unit, ahead of its need."""
        self._ahead.append(unit)
        self._own.wanted[unit.index] += 1
        try:
            for shard in spilled.shards_of(unit):
                self._homes.anticipate(shard)
            self._doorbell.ring(Bell.NEWS)
            self._attend()
        except BaseException:
            self._ahead.remove(unit)
            self._give_up(unit)
            raise

    def finish(self, unit: Unit) -> None:
        """Return when all slices are on the device; where, ``frames`` tells until the unit is released."""
        if unit not in self._ahead:
            self.claim(unit)
        self._ahead.remove(unit)
        self._attend()
        if (self._rank, unit.index) in self._provided:
            spilled.finish(unit)
            self._attend()
        if not self._late(unit):
            return
        self._own.pressing[0] = 1 + unit.index
        self._doorbell.ring(Bell.NEWS)
        try:
            self._doorbell.wait_until_none(
                partial(self._late, unit), f"for the ranks' parts of {unit.name}", partial(self._reason, unit)
            )
        finally:
            self._own.pressing[0] = 0

    def release(self, unit: Unit) -> None:
        """This rank needs the unit no longer, or not as soon as it thought."""
        if unit in self._ahead:
            self._ahead.remove(unit)
        self._give_up(unit)
        self._attend()

    def has_room(self, unit: Unit) -> bool:
        """Whether a claim would be admitted at once."""
        claimed = self._claimed()
        claimed[unit.index] = True
        return self._bytes_of(claimed) <= self._room

    def frames(self, flat: Flat) -> dict[int, list[int]]:
        """Of each rank."""
        return {rank: board.frames(flat) for rank, board in enumerate(self._boards)}

    def _give_up(self, unit: Unit) -> None:
        self._own.released[unit.index] = self._own.wanted[unit.index]
        self._doorbell.ring(Bell.NEWS)

    def _attend_in_wait(self) -> bool:
        """See ``Doorbell.attend``. Raises BudgetError where a claim of this rank's will never find room."""
        self._doorbell.listen()
        if self._ahead and self._bytes_of(self._claimed()) > self._room and any(map(self._lacks_room, self._ranks)):
            for unit in self._ahead:
                self._give_up(unit)
            self._ahead.clear()
        busy = self._attend()
        if not busy and self._lacks_room(self._rank) and self._nobody_moves():
            pressing = int(self._own.pressing[0])
            if pressing < 0:
                raise BudgetError(f"{self._units[-pressing - 1].name} has no room: {self._shortage()}")
            self._own.pressing[0] = -pressing
            self._doorbell.ring(Bell.NEWS)
            busy = self._attend()
        return busy

    @property
    def _ranks(self) -> range:
        return range(len(self._boards))

    def _lacks_room(self, rank: int) -> bool:
        """Whether the rank waits for a claim to be admitted."""
        unit = abs(int(self._boards[rank].pressing[0])) - 1
        return unit >= 0 and not self._is_admitted(rank, unit)

    def _nobody_moves(self) -> bool:
        """Whether all other ranks sleep and have heard all there was to hear, as this one has.

        Who sleeps wakes up for a signal only, so what is seen of it first still holds when the signals are counted.
        """
        rests = [int(board.pulse[RESTS]) for board in self._boards]
        rests[self._rank] = 1 + self._doorbell.heard
        rung = [int(board.pulse[RUNG]) for board in self._boards]
        return all(rests[rank] == 1 + sum(rung) - rung[rank] for rank in self._ranks)

    def _attend(self) -> bool:
        """Whether shards are on their way for somebody."""
        self._doorbell.listen()
        if self._rank == 0:
            self._admit()
        more = int(self._boards[0].extra[0] - self._own.extra[0])
        if more and self._homes.extend(more):
            self._own.extra[0] += more
        admitted = self._boards[0].admitted.copy()
        self._let_go()  # after that look: what has been admitted has room beside what was given up before
        return self._provide(admitted)

    def _admit(self) -> None:
        """Claims that somebody waits for first."""
        admitted, wanted = self._own.admitted, np.stack([board.wanted for board in self._boards])
        waiting = np.argwhere(wanted > admitted).tolist()
        if not waiting:
            return
        released = np.stack([board.released for board in self._boards])
        held: Flags = np.any(admitted > released, axis=0)
        for rank, unit in sorted(waiting, key=lambda at: abs(self._boards[at[0]].pressing[0]) != 1 + at[1]):
            given_up = released[rank, unit] == wanted[rank, unit]
            short = 0 if given_up or held[unit] else self._bytes_of(held) + int(self._rooms[unit]) - self._room
            stuck = self._boards[rank].pressing[0] == -1 - unit
            if short > 0 and stuck and self._homes.extend(short):
                self._own.extra[0] += short
                short = 0
            if short <= 0:
                admitted[rank, unit] = wanted[rank, unit]
                held[unit] |= not given_up
        self._doorbell.ring(Bell.NEWS)

    def _let_go(self) -> None:
        for (rank, unit), claim in list(self._provided.items()):
            if self._boards[rank].released[unit] >= claim:
                del self._provided[rank, unit]
                for shard in spilled.shards_of(self._units[unit]):
                    self._homes.let_go(shard)

    def _provide(self, admitted: Numbers) -> bool:
        told = False
        coming = np.argwhere(admitted > self._own.granted).tolist()
        for rank, unit in list(coming):
            claim = int(admitted[rank, unit])
            given_up = int(self._boards[rank].released[unit]) >= claim
            if not given_up and (rank, unit) not in self._provided:
                spilled.take(self._units[unit])
                self._provided[rank, unit] = claim
            if given_up or self._bring(self._units[unit]):
                self._own.granted[rank, unit] = claim
                coming.remove([rank, unit])
                told = True
        if told:
            self._doorbell.ring(Bell.NEWS)
        return bool(coming)

    def _bring(self, unit: Unit) -> bool:
        """Whether this rank's shards are here, and the others know where."""
        if not spilled.arrived(unit):
            return False
        spilled.finish(unit)
        for flat, shard in spilled.homes_of(unit):
            self._own.write(flat, spilled.frames_of(shard))
        return True

    def _late(self, unit: Unit) -> list[int]:
        claim = self._own.wanted[unit.index]
        return [rank for rank, board in enumerate(self._boards) if board.granted[self._rank, unit.index] < claim]

    def _reason(self, unit: Unit, rank: int) -> str:
        if self._is_admitted(self._rank, unit.index):
            return "it has not brought its part"
        return f"no room was found for it, {self._shortage()}"

    def _shortage(self) -> str:
        names = [self._units[index].name for index in np.flatnonzero(self._claimed()).tolist()]
        most = self._bytes_of(self._claimed()) - self._room
        return (
            f"the ranks that share them use or need {', '.join(names)} at once, and {size_text(self._room, floor)} of "
            f"memory.device are left for parameters in use: give memory.device {size_text(most, ceil)} more"
        )

    def _is_admitted(self, rank: int, unit: int) -> bool:
        return bool(self._boards[0].admitted[rank, unit] >= self._boards[rank].wanted[unit])

    def _claimed(self) -> Flags:
        """By unit: whether any rank claims it."""
        claimed: Flags = np.any([board.wanted > board.released for board in self._boards], axis=0)
        return claimed

    @property
    def _rooms(self) -> Numbers:
        """By unit, of each rank: bytes that aren't there for good."""
        shards = map(spilled.shards_of, self._units)
        return np.array([sum(shard.room for shard in of_unit if not shard.resident) for of_unit in shards])

    def _bytes_of(self, units: Flags) -> int:
        return int(self._rooms[units].sum())

    @property
    def _room(self) -> int:
        """For claims: all but what an update in the backward may take for itself, unless everything fits."""
        shards = [shard for unit in self._units for shard in spilled.shards_of(unit)]
        residents = sum(shard.room for shard in shards if shard.resident)
        others = [shard.room for shard in shards if not shard.resident]
        left = self._homes.budget - residents
        return left if sum(others) <= left else left - max(others)
