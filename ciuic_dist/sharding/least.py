"""Whether a budget can work: what a rank needs at the least, on the device and below. Integers only."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.monitor.units import size_text


@dataclass(frozen=True, slots=True)
class Least:
    """Bytes of the device that nothing can take the place of."""

    budget: int
    fixed: int
    """The root unit, and what gradients are exchanged through."""
    parameters: int
    pages: int
    transient: int
    """Activations and temporary values."""
    lacking: int
    """Of all these, what would be in lower tiers if there were room."""
    alone: bool
    """There are no lower tiers."""

    def check(self) -> None:
        """Raise BudgetError where they are too many."""
        least = self.fixed + self.parameters + self.pages + self.transient
        if least <= self.budget:
            return
        more = ""
        if self.alone:
            more = ", or give memory.host or memory.nvme as well, which would take the rest"
        elif self.lacking and least - self.lacking <= self.budget:
            more = f", or give memory.host or memory.nvme {size_text(self.lacking, ceil)} more for each rank"
        raise BudgetError(
            f"memory.device is {size_text(self.budget, floor)} and at least {size_text(least, ceil)} are needed: "
            f"{size_text(self.fixed)} for the root unit and for exchanging gradients, "
            f"{size_text(self.parameters)} for parameters in use, "
            f"{size_text(self.pages)} for pages of optimizer state and gradients, and "
            f"{size_text(self.transient)} for activations and temporary values: "
            f"raise it, use smaller micro-batches or checkpoint activations{more}"
        )


@dataclass(frozen=True, slots=True)
class Below:
    """Bytes of lower tiers, and what has its place there in any case."""

    there: int
    parameters: int
    """All that stay, for when they are changed."""
    gradients: int
    """Those that wait for the update."""
    stuck: int
    """Of the optimizer's state, what finds no room there."""

    def check(self, *, offloads: bool) -> None:
        """Raise BudgetError where there is too little room; ``offloads``: activations are to leave in any case."""
        if self.parameters + self.gradients > self.there:
            kept = f" and gradients {size_text(self.gradients, ceil)}" if self.gradients else ""
            raise BudgetError(
                f"memory.host and memory.nvme have {size_text(self.there, floor)} for this rank, and parameters alone "
                f"take {size_text(self.parameters, ceil)} there{kept}: give that for each rank at least, and room for "
                f"the optimizer's state, as far as the device has none"
            )
        if offloads and self.stuck:
            raise BudgetError(
                f"memory.activations=offload needs room below, and the optimizer's state takes all of it: give "
                f"memory.host or memory.nvme {size_text(self.stuck, ceil)} more for each rank, and what activations "
                f"take"
            )
