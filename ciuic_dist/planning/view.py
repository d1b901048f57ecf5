"""What a policy may know: where every item is, and when it was used and will be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ciuic_dist.planning.trace import Trace


@dataclass(slots=True)
class View:
    """A moment of a run of ``trace``. Operations are counted from the start of the run, over all cycles."""

    trace: Trace
    now: int = 0
    """The operation that runs, or that waits for its items."""
    resident: set[int] = field(default_factory=set)
    """Items on the device that can be used, or evicted unless the current operation uses them."""
    absent: set[int] = field(default_factory=set)
    """Items that are on the next tier only, and not under way."""
    dirty: set[int] = field(default_factory=set)
    """Items whose copy on the next tier is out of date."""
    next_use: list[float] = field(default_factory=list)
    last_use: list[int] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)
    """The operation during which the item came to the device."""
    counts: list[int] = field(default_factory=list)
    """Uses so far."""

    def __post_init__(self) -> None:
        """Before the first operation everything is on the next tier, but for what the step creates."""
        created = {item for op in self.trace.ops for item in op.creates}
        self.next_use = [float(uses[0]) if uses else math.inf for uses in self.trace.uses]
        self.last_use, self.fetched = ([-1] * len(self.trace.items) for _ in range(2))
        self.counts = [0] * len(self.trace.items)
        self.absent = {item for item, uses in enumerate(self.trace.uses) if uses} - created

    @property
    def index(self) -> int:
        """The current operation in the trace."""
        return self.now % len(self.trace.ops)

    @property
    def pinned(self) -> tuple[int, ...]:
        """What the current operation uses: it must not be evicted."""
        return self.trace.ops[self.index].uses
