"""Pages on their way between the device and lower tiers, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass

from ciuic_dist.memory.table import Page, PageState
from ciuic_dist.memory.tier import PageError
from ciuic_dist.memory.transfer import Ticket


@dataclass(frozen=True, slots=True)
class Landing:
    """What a flight has led to."""

    here: Page | None
    """Which of its pages is on the device."""
    free: int | None
    """The device slot that no page has now."""
    failure: PageError | None


@dataclass(frozen=True, slots=True)
class Flight:
    """A page on its way down, or one on its way here, or both through one slot."""

    leaving: Page | None
    coming: Page | None
    ticket: Ticket

    @property
    def pages(self) -> list[Page]:
        """One or both."""
        return [page for page in (self.leaving, self.coming) if page is not None]

    def land(self) -> Landing:
        """Wait for it. Where a copy failed, the page that it was to move is where it was before."""
        failure = None
        try:
            self.ticket.wait()
        except PageError as error:
            failure = error
        slot = self.pages[0].slot
        here = self.coming if failure is None else None
        if failure is not None and self.ticket.through == 0:
            here = self.leaving
        for page in self.pages:
            self._put(page, here)
        return Landing(here, slot if here is None else None, failure)

    def _put(self, page: Page, here: Page | None) -> None:
        if page is here:
            page.move(PageState.DEVICE)
            return
        if page is self.leaving:
            page.dirty = False
        page.slot = None
        page.move(PageState.SPILLED)
