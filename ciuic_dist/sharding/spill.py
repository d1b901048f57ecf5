"""A rank's memory under a budget: what the device may hold of parameters and of pages, and the tiers below.

With no tier below everything has its place on the device from the start, and none of it ever leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ciuic_dist.comm.groups import timeout_seconds
from ciuic_dist.memory.accelerator import Accelerator
from ciuic_dist.memory.activations import ActivationStore
from ciuic_dist.memory.budget import BudgetError, Budgets
from ciuic_dist.memory.device import Device, HostDevice
from ciuic_dist.memory.extent import Extent
from ciuic_dist.memory.file import FileTier
from ciuic_dist.memory.pager import Pager
from ciuic_dist.memory.place import Place
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.tier import Tier
from ciuic_dist.memory.transfer import Transfers
from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.flight import DRIVE_THREADS, UNITS_IN_FLIGHT
from ciuic_dist.planning.pages import GRADIENT_SLOTS, PAGES_OF_A_FLAT, STATE_SLOTS, page_bytes
from ciuic_dist.planning.residency import stay
from ciuic_dist.sharding.columns import PagedColumn
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.homes import Homes, SpilledShard, cannot_extend
from ciuic_dist.sharding.housing import Housed, StorageHousing, WindowHousing, shows_frames
from ciuic_dist.sharding.least import Below, Least

_FINER_ALONE = 8
"""By which factor pages are smaller where none moves: less of them stays empty."""
_UNSEEN = 16 << 20
"""Bytes that a process may grow by beyond what is counted before that counts too: objects, libraries' own buffers."""
_HEAP_GROWTH = 1.1
"""By how much a heap may go on to grow: its free blocks fit less and less."""


class Spill:
    """Divides the device's budget, and knows what everything takes."""

    def __init__(self, budgets: Budgets, where: torch.device) -> None:
        """Reserves the tiers below the device ``where``. Raises BudgetError where they can't be had."""
        assert budgets.device is not None
        self.alone = not (budgets.host or budgets.nvme)
        if self.alone and budgets.activations is Way.OFFLOAD:
            raise BudgetError("memory.activations=offload needs a tier below: give memory.host or memory.nvme as well")
        self._baseline = 0
        self.budget = budgets.device
        self._where = where
        self.device: Device = HostDevice() if where.type == "cpu" else Accelerator(where)
        self._finer = _FINER_ALONE if self.alone else 1
        self.page_bytes = page_bytes(budgets.device // self._finer, self.device.largest_page)
        self.tiers = _open_tiers(budgets, self.page_bytes, self.device)
        self.transfers = Transfers(DRIVE_THREADS, timeout_seconds(), self.device)
        self.homes = Homes(self.page_bytes)
        self._housing: WindowHousing | StorageHousing
        if shows_frames(where):
            self._housing = WindowHousing(self.page_bytes, self.budget // self.page_bytes)
        else:
            self._housing = StorageHousing(self.page_bytes)
        self.states = self._pager(STATE_SLOTS)
        self.gradients = self._pager(GRADIENT_SLOTS)
        self.steps = 0
        self.transient = 0
        self.beyond = 0
        """Bytes by which the process has grown that the budget has no room for."""
        self.activations = budgets.activations
        self.gradient_slots = 0
        """Pages of gradients that are kept for the update."""
        self.stuck = 0
        """Pages of state that stay on the device from the first step on: ``stuck_pages``, the most of any rank."""
        self._shards: list[SpilledShard] = []
        self._fixed = 0
        self.slots_below = sum(tier.pool.slots for tier in self.tiers)
        """Of this rank; where other ranks have fewer, as many as these."""
        self._staying = 0
        self._least_parameters = 0
        self._parameter_bytes = 0
        self._all_parameters = 0

    @property
    def frames_file(self) -> int | None:
        """The descriptor of the file in which parameters come and go, if other ranks can map it."""
        return self._housing.frames.descriptor if isinstance(self._housing, WindowHousing) else None

    def _pager(self, slots: int) -> Pager:
        most = max(self.budget // self.page_bytes, slots)
        return Pager(
            self.device.slab(most, self.page_bytes),
            page_bytes=self.page_bytes,
            most_slots=most,
            slots=slots,
            tiers=self.tiers,
            transfers=self.transfers,
        )

    def flat_bytes(self, world: int) -> int:
        """What a flat of ``world`` shards takes at least, in units that are larger."""
        return PAGES_OF_A_FLAT * self._finer * self.page_bytes * world

    def gradient(self, name: str, numel: int, dtype: torch.dtype) -> PagedColumn:
        """Gradients in pages."""
        return self._column(name, numel, dtype, self.gradients)

    def state(self, name: str, numel: int, dtype: torch.dtype) -> PagedColumn:
        """What is kept from step to step, in pages."""
        return self._column(name, numel, dtype, self.states)

    def _column(self, name: str, numel: int, dtype: torch.dtype, pager: Pager) -> PagedColumn:
        column = PagedColumn(name, numel, dtype, pager)
        if self.alone:
            pager.allow(len(pager.pages), 0)
        return column

    def activation_store(self, keep: Callable[[Tensor], bool]) -> ActivationStore:
        """For what autograd saves; ``keep`` tells what isn't worth it."""
        page = self.page_bytes
        return ActivationStore(
            self.tiers,
            self.transfers,
            page_bytes=page,
            least_bytes=page // 2,
            bytes_under_way=DRIVE_THREADS * page,
            device=self._where,
            keep=keep,
        )

    @property
    def pages_to_come(self) -> int:
        """Slots of lower tiers that parameters, gradients and the state known so far may yet take."""
        pages = sum(page.tier is None and not page.resident for page in (*self.states.pages, *self.gradients.pages))
        return pages + sum(shard.room // self.page_bytes for shard in self._shards if not shard.placed)

    @property
    def room_below(self) -> int:
        """Bytes that lower tiers have beside those pages."""
        return (sum(tier.pool.free_slots for tier in self.tiers) - self.pages_to_come) * self.page_bytes

    def span_numel(self, itemsize: int) -> int:
        """As many elements as fill a page of fp32, or of what is wider."""
        return self.page_bytes // max(itemsize, 4)

    def house_shared(self, flat: Flat, files: Sequence[int]) -> None:
        """Give the flat a place and a home; ``files`` are the frames of all ranks that have a part of it."""
        assert isinstance(self._housing, WindowHousing)
        self._settle_in(flat, self._housing.shared(flat, files), copies_stay=False)

    def house(self, flat: Flat, *, copies_stay: bool = True) -> None:
        """The same where this rank has all of the flat in memory of its own, the other ranks' slices as copies.

        These count as many pages as on the rank where they take most: all ranks must have room for the same.
        """
        self._settle_in(flat, self._housing.alone(flat), copies_stay=copies_stay)

    def _settle_in(self, flat: Flat, housed: Housed, *, copies_stay: bool) -> None:
        home = flat.home = self._spilled(flat.name, housed.own, stays=True)
        home.copies = [
            self._spilled(f"{flat.name} of other ranks", place, stays=copies_stay) for place in housed.copies
        ]
        if home.copies:
            most = max(sum(map(self.homes.room_of, sizes)) for sizes in housed.sizes)
            home.copies[0].room += most - sum(copy.room for copy in home.copies)

    def _spilled(self, name: str, place: Place, *, stays: bool) -> SpilledShard:
        extent = Extent(f"{name} parameters", self.tiers, self.transfers)
        return SpilledShard(name, place, extent, self.homes, stays=stays)

    def begin(self, fixed: int, units: Sequence[Sequence[SpilledShard]]) -> None:
        """Give parameters, of these units, and pages the least they need; ``fixed`` bytes of the device are others'.

        Raises BudgetError where even that is too much.
        """
        self._fixed = fixed
        self._shards = [shard for unit in units for shard in unit if shard.stays]
        rooms = [sum(shard.room for shard in unit) for unit in units]
        passing = max(sum(shard.room for shard in unit if not shard.stays) for unit in units)
        self._staying = sum(shard.room for shard in self._shards)
        self._all_parameters = sum(rooms)
        self._parameter_bytes = min(self._all_parameters, self._staying + UNITS_IN_FLIGHT * passing)
        least = self._parameter_bytes if self.alone else UNITS_IN_FLIGHT * max(rooms)
        self.homes.budget = self._least_parameters = min(least, self._parameter_bytes)
        for shard in self._shards:
            shard.resident = self.alone
        self.homes.extend = self._extend
        self.stuck = self.stuck_pages
        self.check(0)
        self.hold()

    def _extend(self, nbytes: int) -> bool:
        """More at the least for parameters, as long as the rest isn't divided, and at most."""
        if self._least + nbytes > self.budget:
            return False
        self._least_parameters += nbytes
        self.homes.budget += nbytes
        most = min(self._all_parameters, self._parameter_bytes + nbytes)
        self._parameter_bytes = max(self._least_parameters, most)
        return True

    def shrink(self) -> None:
        """Go back to the least for parameters and pages, which give back the memory they have beyond it.

        Raises BudgetError where lower tiers have no room for what leaves, PageError where that can't be stored.
        """
        if self.alone:
            return
        for shard in self._shards:
            shard.resident = False
        self.homes.shrink(self._least_parameters)
        self._housing.give_back()
        self.homes.extend = self._extend
        self.states.shrink(STATE_SLOTS + self.stuck, STATE_SLOTS)
        self.states.rest()
        self.gradients.shrink(GRADIENT_SLOTS, GRADIENT_SLOTS)
        self.device.give_back_freed()

    def weigh_the_rest(self, own: int) -> None:
        """What the process has now but for pages and ``own`` bytes of parameters is in no tier's budget."""
        self.device.give_back_freed()
        self.homes.peak = self.homes.used
        self._baseline = self.device.taken() - self._touched_pages - self._private_parameters - own

    def growth(self, shared: int) -> int:
        """Bytes by which the process is larger than it was then, but for pages and what is fixed.

        ``shared``: how much of what is fixed lies in memory shared with other ranks.
        """
        known = self._touched_pages + self._private_parameters + self._fixed - shared
        return self.device.taken() - self._baseline - known

    @property
    def _private_parameters(self) -> int:
        """Bytes; allocators keep what was freed."""
        return self.homes.peak if self._housing.is_private else 0

    @property
    def _touched_pages(self) -> int:
        host = sum(tier.usage().peak for tier in self.tiers if tier.name == "host" and self.device.is_host)
        return self.states.touched_bytes + self.gradients.touched_bytes + host

    def transient_bytes(self, counted: int, grown: int) -> int:
        """Of activations and temporary values: as ``counted``, or more where the process has ``grown`` by more.

        No more than there is room for: what a small budget has no room for may be the libraries' own, and is
        ``beyond`` it.
        """
        wanted = round((grown - _UNSEEN) * _HEAP_GROWTH)
        self.beyond = max(0, wanted - max(counted, self.most_transient))
        return max(counted, min(wanted, self.most_transient))

    @property
    def most_transient(self) -> int:
        """Bytes that there are beside the least for parameters and pages."""
        return self.budget - self._least

    @property
    def _least(self) -> int:
        return self._fixed + self._least_parameters + self._least_pages

    @property
    def _least_pages(self) -> int:
        state, gradients = STATE_SLOTS + self.stuck, GRADIENT_SLOTS
        if self.alone:
            state = self.state_pages
            gradients = min(GRADIENT_SLOTS + self.gradient_slots, len(self.gradients.pages))
        return (state + gradients) * self.page_bytes

    @property
    def no_room_below(self) -> bool:
        """Whether lower tiers have none for activations, or there are none."""
        return self.alone or self.stuck > 0

    @property
    def outgrown(self) -> bool:
        """Whether more is stuck than has room for good."""
        return self.stuck_pages > self.states.resident

    @property
    def stuck_pages(self) -> int:
        """Of the state known so far: what lower tiers have no room for beside parameters and gradients."""
        room = self.slots_below - self._staying // self.page_bytes - self.gradient_slots
        return 0 if self.alone else min(max(0, self.state_pages - room), self.state_pages)

    def hold(self) -> None:
        """What is stuck stays from now on; the budget isn't divided yet."""
        if not self.alone and self.stuck > self.states.resident:
            self.states.allow(STATE_SLOTS + self.stuck, STATE_SLOTS)
            self.states.rest()  # what comes for good leaves room below, which others count on

    def check(self, transient: int, crowded: int = 0) -> None:
        """Raise BudgetError where the least that pages and parameters need is too much beside ``transient`` bytes.

        ``crowded``: how many of these would be in lower tiers if there were room.
        """
        stuck = self.stuck * self.page_bytes
        if not self.alone:
            below = Below(
                there=self.slots_below * self.page_bytes,
                parameters=self._staying,
                gradients=self.gradient_slots * self.page_bytes,
                stuck=stuck,
            )
            below.check(offloads=self.activations is Way.OFFLOAD)
        Least(
            budget=self.budget,
            fixed=self._fixed,
            parameters=self._least_parameters,
            pages=self._least_pages,
            transient=transient,
            lacking=crowded + stuck,
            alone=self.alone,
        ).check()

    @property
    def state_pages(self) -> int:
        """Of this rank's optimizer state, as far as it has been made."""
        return len(self.states.pages)

    def divide(self, transient: int, ring: int) -> None:
        """Divide what beside ``transient`` bytes is free, where all have the least.

        First come ``ring`` slots for the state of the largest flat: so much can come while the one before computes.
        Then parameters, which are used most often: those that stay;
        then gradients, as far as ``gradient_slots`` are used; the rest is for more state that stays.
        """
        self.check(transient)
        self.transient = transient
        if self.alone:
            return
        self.homes.extend = cannot_extend
        spare = self.most_transient - transient
        ring = min(spare // self.page_bytes, ring)
        spare -= ring * self.page_bytes
        for_parameters = min(spare, self._parameter_bytes - self.homes.budget)
        self.homes.budget += for_parameters
        self._choose_residents(for_parameters)
        slots = (spare - for_parameters) // self.page_bytes
        for_gradients = max(0, min(slots, self.gradient_slots - GRADIENT_SLOTS))
        self.gradients.allow(GRADIENT_SLOTS + for_gradients, GRADIENT_SLOTS)
        self.states.allow(STATE_SLOTS + self.stuck + ring + slots - for_gradients, STATE_SLOTS + ring)
        self.states.rest()  # its room below is counted on, as in hold

    def _choose_residents(self, room: int) -> None:
        all_fit = self.homes.budget == self._parameter_bytes
        copies = {copy for shard in self._shards for copy in shard.copies}
        flats = [
            [home, *(copy for copy in home.copies if copy.stays)] for home in self._shards if home not in copies
        ]  # as wholes, since how they are cut into copies differs among ranks
        sizes = [sum(shard.room for shard in flat) for flat in flats]
        for flat, stays in zip(flats, stay(sizes, sum(sizes) if all_fit else room), strict=True):
            for shard in flat:
                shard.resident = stays

    @property
    def used(self) -> int:
        """Bytes of the device, but for activations and temporary values."""
        return self._fixed + self.homes.used + self.states.used_bytes + self.gradients.used_bytes

    def lower_tiers(self) -> dict[str, TierUsage]:
        """By name."""
        return {tier.name: tier.usage() for tier in self.tiers}

    def end_step(self) -> None:
        """The pages' cycle is over."""
        self.steps += 1
        self.states.end_cycle()
        self.gradients.end_cycle()

    def close(self) -> None:
        """Wait for what is under way and give the tiers back."""
        self.transfers.close()
        for tier in self.tiers:
            tier.close()
        self.device.close()
        self._housing.close()


def _open_tiers(budgets: Budgets, page_bytes: int, device: Device) -> Sequence[Tier]:
    tiers: list[Tier] = []
    if budgets.host:
        tiers.append(RamTier("host", page_bytes, budgets.host // page_bytes, device.host_buffer))
    if budgets.nvme and budgets.folder is not None:
        tiers.append(FileTier(budgets.folder, page_bytes, budgets.nvme // page_bytes, device.host_buffer))
    return tiers
