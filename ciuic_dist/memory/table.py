"""A page's states, and what memory each holds."""

from __future__ import annotations

from enum import Enum

from ciuic_dist.memory.pool import PageMisuse
from ciuic_dist.memory.tier import Tier


class PageState(Enum):
    """Where a page's content is."""

    ABSENT = "absent"
    """Nowhere: not made yet, or not needed any more. Memory: none."""
    DEVICE = "on the device"
    """The device's copy counts. Memory: a device slot, and the lower slot if it keeps one to be evicted to."""
    FETCHING = "fetching"
    """On its way up; the lower copy counts. Memory: both slots."""
    STORING = "storing"
    """On its way down; the device's copy counts and may be read. Memory: both slots."""
    SPILLED = "spilled"
    """The lower copy counts. Memory: the lower slot."""


_TRANSITIONS = {
    (PageState.ABSENT, PageState.DEVICE),  # made
    (PageState.DEVICE, PageState.STORING),
    (PageState.STORING, PageState.SPILLED),
    (PageState.STORING, PageState.DEVICE),  # stored and kept, or the transfer failed
    (PageState.DEVICE, PageState.SPILLED),  # dropped: a clean page needs no writing
    (PageState.SPILLED, PageState.FETCHING),
    (PageState.FETCHING, PageState.DEVICE),
    (PageState.FETCHING, PageState.SPILLED),  # the transfer failed
    (PageState.DEVICE, PageState.ABSENT),  # not needed any more
    (PageState.SPILLED, PageState.ABSENT),
}


class Page:
    """What is known of one page. Whoever takes and frees its slots and transfers its content keeps it up to date."""

    __slots__ = ("dirty", "name", "nbytes", "resident", "slot", "state", "tier", "tier_slot")

    def __init__(self, name: str, nbytes: int) -> None:
        """``nbytes`` of content; ``name`` is for errors, such as "layers.3 (torch.float32) exp_avg page 2".

        ``slot`` is the device's; ``tier`` and ``tier_slot`` are the lower ones. ``dirty``: no lower copy equals the
        device's; True for a new page, its owner clears it when a store is done and sets it at every change.
        ``resident``: once here it doesn't leave, and has no lower slot.
        """
        self.name = name
        self.nbytes = nbytes
        self.state = PageState.ABSENT
        self.dirty = True
        self.resident = False
        self.slot: int | None = None
        self.tier: Tier | None = None
        self.tier_slot: int | None = None

    def move(self, state: PageState) -> None:
        """Go to ``state``. Raises PageMisuse where the table has no such step, or a dirty page would be dropped."""
        if (self.state, state) not in _TRANSITIONS:
            raise PageMisuse(f"{self.name} can't go from {self.state.value} to {state.value}")
        if (self.state, state) == (PageState.DEVICE, PageState.SPILLED) and self.dirty:
            raise PageMisuse(f"{self.name} can't go from {self.state.value} to {state.value}: it is dirty, store it")
        self.state = state
        self.dirty |= state is PageState.ABSENT
