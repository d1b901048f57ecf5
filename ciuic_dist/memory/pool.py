"""Which slots of a tier are in use."""

from __future__ import annotations

import heapq

_SHOWN = 8


class PoolFull(RuntimeError):
    """A slot is asked for and all are in use."""


class PageMisuse(RuntimeError):
    """A slot or page is used against its state: always a mistake in the code that uses it."""


class SlotPool:
    """Slots 0 to ``slots - 1`` of equal size. The lowest free one is given out first; a pinned one can't be freed.

    After ``forget_free`` those that have memory go before those that have none.
    Integers only: the memory behind the slots is a tier's. For one thread, except ``check_used``.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.peak = 0
        self._fresh = 0  # the lowest slot that was never in use
        self._free: list[tuple[bool, int]] = []  # a heap of those that were; whether forgotten, and the slot
        self._touched: set[int] = set()
        self._pins: dict[int, int] = {}  # of each slot in use

    @property
    def free_slots(self) -> int:
        """How many can be had."""
        return len(self._free) + self.slots - self._fresh

    @property
    def used(self) -> int:
        """How many are in use."""
        return len(self._pins)

    @property
    def touched(self) -> int:
        """How many have been in use since their memory was last given back."""
        return len(self._touched)

    def alloc(self) -> int:
        """Take the lowest free slot. Raises PoolFull."""
        if not self.free_slots:
            raise PoolFull(f"all {self.slots} slots are in use")
        if self._free:
            _, slot = heapq.heappop(self._free)
        else:
            slot, self._fresh = self._fresh, self._fresh + 1
        self._pins[slot] = 0
        self._touched.add(slot)
        self.peak = max(self.peak, self.used)
        return slot

    def free(self, slot: int) -> None:
        """Give ``slot`` back. Raises PageMisuse where it is not in use, or pinned."""
        if self.is_pinned(slot):
            raise PageMisuse(f"slot {slot} is pinned {self._pins[slot]} times and can't be freed")
        del self._pins[slot]
        heapq.heappush(self._free, (False, slot))

    def forget_free(self) -> list[int]:
        """The free slots that were touched, in order, which is not so any more: their memory is to be given back."""
        idle = sorted(self._touched - self._pins.keys())
        self._touched.difference_update(idle)
        self._free = [(slot not in self._touched, slot) for _, slot in self._free]
        heapq.heapify(self._free)
        return idle

    def pin(self, slot: int) -> None:
        """Keep ``slot`` from being freed until it is unpinned as often. Raises PageMisuse where it is not in use."""
        self.check_used(slot)
        self._pins[slot] += 1

    def unpin(self, slot: int) -> None:
        """Take one pin back. Raises PageMisuse where there is none."""
        if not self.is_pinned(slot):
            raise PageMisuse(f"slot {slot} is not pinned")
        self._pins[slot] -= 1

    def is_pinned(self, slot: int) -> bool:
        """Raises PageMisuse where ``slot`` is not in use."""
        self.check_used(slot)
        return self._pins[slot] > 0

    def check_used(self, slot: int) -> None:
        """Raises PageMisuse where ``slot`` is not in use."""
        if slot not in self._pins:
            state = "free" if 0 <= slot < self.slots else f"none of this pool's {self.slots}"
            raise PageMisuse(f"slot {slot} is {state}")

    def check_empty(self) -> None:
        """Raises PageMisuse, naming slots, where some were not freed."""
        if self._pins:
            leaked = sorted(self._pins)
            more = f" and {len(leaked) - _SHOWN} more" if len(leaked) > _SHOWN else ""
            raise PageMisuse(f"slots never freed: {', '.join(map(str, leaked[:_SHOWN]))}{more}")
