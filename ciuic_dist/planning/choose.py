"""Simulate static + ring with rings of several sizes, and rotating MIN, and keep the quickest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ciuic_dist.planning.bound import lower_bound
from ciuic_dist.planning.policy import Policy, rotating, static_ring
from ciuic_dist.planning.simulate import Outcome, simulate
from ciuic_dist.planning.trace import Trace
from ciuic_dist.planning.two_tier import TwoTier


@dataclass(frozen=True, slots=True)
class Choice:
    """The quickest policy and what it was measured against."""

    policy: Policy
    outcome: Outcome
    others: tuple[Outcome, ...]
    bound: float | None = None
    """Seconds a step that no schedule can beat."""

    @property
    def over_bound(self) -> float | None:
        """Step time divided by the bound; None without one."""
        return None if self.bound is None else self.outcome.seconds / self.bound


def choose(trace: Trace, machine: TwoTier, *, bounded: bool = False) -> Choice:
    """The best of our policies for ``trace`` on ``machine``; of equals the one that moves least.

    ``bounded``: compute the lower bound too, which needs scipy and some seconds. Raises BudgetTooSmall where
    the trace can't run.
    """
    outcomes = [(simulate(trace, machine, policy), policy) for policy in candidates(trace, machine.room(trace))]
    best = min(outcomes, key=lambda entry: (round(entry[0].seconds, 9), entry[0].up + entry[0].down))
    others = tuple(outcome for outcome, _ in outcomes if outcome is not best[0])
    return Choice(best[1], best[0], others, lower_bound(trace, machine, merge=4) if bounded else None)


def candidates(trace: Trace, room: int) -> Iterator[Policy]:
    """Rings from what one operation needs, doubling; then all of the room. Each writes back late, or early."""
    ring = max(trace.largest, 1)
    while ring < room:
        for background in (False, True):
            yield static_ring(trace, room, ring, background=background)
        ring *= 2
    yield rotating()
    yield rotating(background=True)
