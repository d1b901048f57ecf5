"""A page's states: which may follow which, and that no way through them loses a change."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ciuic_dist.memory.pool import PageMisuse
from ciuic_dist.memory.table import Page, PageState

ABSENT, DEVICE, FETCHING, STORING, SPILLED = PageState
NEXT = {
    ABSENT: {DEVICE},
    DEVICE: {ABSENT, STORING, SPILLED},
    FETCHING: {DEVICE, SPILLED},
    STORING: {DEVICE, SPILLED},
    SPILLED: {ABSENT, FETCHING},
}


@pytest.mark.parametrize(("before", "after"), list(product(PageState, PageState)), ids=lambda state: state.name)
def test_the_table_is_exact(before: PageState, after: PageState) -> None:
    page = Page("layers.3 exp_avg page 2", 4096)
    page.state, page.dirty = before, False
    if after in NEXT[before]:
        page.move(after)
        assert page.state is after
    else:
        with pytest.raises(PageMisuse, match=f"layers.3 exp_avg page 2 can't go from {before.value} to {after.value}"):
            page.move(after)
        assert page.state is before


def test_a_new_page_is_dirty_again_after_it_was_absent() -> None:
    page = Page("p", 1)
    assert page.dirty
    page.move(DEVICE)
    page.dirty = False  # stored
    page.move(ABSENT)
    page.move(DEVICE)
    with pytest.raises(PageMisuse, match=r"p can't go from on the device to spilled: it is dirty"):
        page.move(SPILLED)


class PageMachine(RuleBasedStateMachine):
    """``newest`` counts changes; ``above`` and ``below`` are the versions that the device and the tier have."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page("p", 4096)
        self.newest = 0
        self.above: int | None = None
        self.below: int | None = None

    @precondition(lambda self: self.page.state is ABSENT)
    @rule()
    def make(self) -> None:
        self.page.move(DEVICE)
        self.newest += 1
        self.above = self.newest

    @precondition(lambda self: self.page.state is DEVICE)
    @rule()
    def change(self) -> None:
        self.page.dirty = True
        self.newest += 1
        self.above = self.newest

    @precondition(lambda self: self.page.state is DEVICE)
    @rule()
    def begin_to_store(self) -> None:
        self.page.move(STORING)
        self.below = None  # half written

    @precondition(lambda self: self.page.state is STORING)
    @rule()
    def keep_after_storing(self) -> None:
        self.below = self.above
        self.page.dirty = False
        self.page.move(DEVICE)

    @precondition(lambda self: self.page.state is STORING)
    @rule()
    def leave_after_storing(self) -> None:
        self.below, self.above = self.above, None
        self.page.dirty = False
        self.page.move(SPILLED)

    @precondition(lambda self: self.page.state is STORING)
    @rule()
    def fail_to_store(self) -> None:
        self.page.dirty = True
        self.page.move(DEVICE)

    @precondition(lambda self: self.page.state is DEVICE)
    @rule()
    def drop(self) -> None:
        if self.page.dirty:
            with pytest.raises(PageMisuse):
                self.page.move(SPILLED)
        else:
            self.page.move(SPILLED)
            self.above = None

    @precondition(lambda self: self.page.state is SPILLED)
    @rule()
    def begin_to_fetch(self) -> None:
        self.page.move(FETCHING)

    @precondition(lambda self: self.page.state is FETCHING)
    @rule()
    def finish_fetching(self) -> None:
        self.page.move(DEVICE)
        self.above = self.below

    @precondition(lambda self: self.page.state is FETCHING)
    @rule()
    def fail_to_fetch(self) -> None:
        self.page.move(SPILLED)

    @precondition(lambda self: self.page.state in {DEVICE, SPILLED})
    @rule()
    def forget(self) -> None:
        self.page.move(ABSENT)
        self.above = self.below = None

    @invariant()
    def the_copy_that_counts_is_the_newest(self) -> None:
        counts = {DEVICE: self.above, STORING: self.above, FETCHING: self.below, SPILLED: self.below}
        if self.page.state is not ABSENT:
            assert counts[self.page.state] == self.newest


TestPage = PageMachine.TestCase
