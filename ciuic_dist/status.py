"""What a sharded model holds and has moved, as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ciuic_dist.monitor.spilling import Spilling
from ciuic_dist.monitor.units import duration_text, size_text
from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.spill import Spill


@dataclass(frozen=True, slots=True)
class Status:
    """One rank's view: bytes by tier, traffic with other ranks and between tiers since the start.

    ``activations``: how many units keep, offload and recompute theirs, once the first step has told. ``beyond``: bytes
    of the process that the device's budget has no room for, what the heap loses to gaps or libraries' own.
    """

    tiers: dict[str, TierUsage]
    gathers: int
    gathered_bytes: int
    reduces: int
    reduced_bytes: int
    spilling: Spilling
    activations: dict[str, int]
    beyond: int = 0

    def __str__(self) -> str:
        """A line for each tier and each kind of traffic there was, and for what spilling cost."""
        return "\n".join(f"{name:<15}{text}" for name, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        moved, ways = self.spilling, [f"{way} {count} units" for way, count in self.activations.items() if count]
        yield from ((name, str(usage)) for name, usage in self.tiers.items())
        if self.beyond:
            yield "beyond device", f"{size_text(self.beyond)} that the heap loses to gaps or libraries have"
        if self.gathers:
            yield "gathered", f"{size_text(self.gathered_bytes)} in {self.gathers} gathers"
        if self.reduces:
            yield "reduced", f"{size_text(self.reduced_bytes)} in {self.reduces} reductions"
        yield from ((name, str(link)) for name, link in moved.links.items())
        if moved.steps:
            yield "stalls", f"{duration_text(moved.stall_seconds)} in {moved.steps} steps"
        if moved.accesses:
            unforeseen = f", {moved.unforeseen} not foreseen" if moved.unforeseen else ""
            yield "pages in time", f"{moved.hit_rate:.0%} of {moved.accesses}{unforeseen}"
        if moved.guesses:
            yield "units guessed", f"{moved.guess_rate:.0%} of {moved.guesses} rightly"
        if moved.nvme_bytes:
            yield "drive wear", f"{size_text(round(moved.nvme_bytes_per_step))} written a step"
        if ways:
            yield "activations", ", ".join(ways)


def status(model: nn.Module) -> Status:
    """Bytes that parameters, gradients and optimizer state take on this rank, and traffic so far.

    Memory that several ranks map counts in equal parts. Without a budget activations are not counted; with one,
    the device's peak includes the most they may take.
    """
    sharded = sharded_of(model)
    spill, traffic = sharded.spill, sharded.exchange.traffic
    used = sharded.usage()
    budget = None if spill is None else spill.budget
    return Status(
        {"device": TierUsage(used, max(used, sharded.peak), budget)} | ({} if spill is None else spill.lower_tiers()),
        traffic.gathers,
        traffic.gathered_bytes,
        traffic.reduces,
        traffic.reduced_bytes,
        Spilling() if spill is None else _spilling(spill, *sharded.gathers.order.guesses()),
        {} if sharded.activations is None else sharded.activations.ways(),
        0 if spill is None else spill.beyond,
    )


def _spilling(spill: Spill, guesses: int, right: int) -> Spilling:
    moved, pagers = spill.transfers.stats, (spill.states, spill.gradients)
    return Spilling(
        dict(moved.links),
        moved.stall_seconds,
        sum(pager.counts.accesses for pager in pagers),
        sum(pager.counts.hits for pager in pagers),
        sum(pager.counts.faults for pager in pagers),
        sum(pager.counts.unforeseen for pager in pagers),
        spill.steps,
        guesses,
        right,
    )
