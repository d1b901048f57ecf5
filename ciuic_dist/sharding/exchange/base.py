"""What the engine asks of the ranks' way to exchange parameters and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.unit import Unit


@dataclass(slots=True)
class Traffic:
    """What went over to or came from other ranks since the start: calls, and bytes this rank received or read."""

    gathers: int = 0
    gathered_bytes: int = 0
    reduces: int = 0
    reduced_bytes: int = 0


class Exchange(Protocol):
    """Every method is called in the same order on every rank; with ``own_order``, not gathers and releases.

    Within a backward, flats are submitted in the order that ``begin`` was given.
    """

    traffic: Traffic
    gathers: bool
    """Whether full forms have to be gathered, and are stale after an update."""
    keeps_full: bool
    """Whether full forms keep their memory between uses."""
    in_step: bool
    """Whether a gather takes part of all ranks, so that they gather in one order."""
    own_order: bool
    """Whether it never does: each rank gathers what it needs, and can take a gather back before it is finished."""
    together: bool
    """Whether ranks need each other for units that don't stay, so that all must have room for the same."""
    reduces_at_once: bool
    """Whether a flat is reduced soon after the last rank has submitted it, or at the end of the backward."""
    has_peers: bool
    """Whether there are other ranks to reduce with."""

    def place(self, flats: Sequence[Flat]) -> None:
        """Give each flat memory for its full form and its shard."""
        ...

    def start_gather(self, unit: Unit) -> None:
        """Begin to make the unit full."""
        ...

    def finish_gather(self, unit: Unit) -> None:
        """Wait until the unit is full."""
        ...

    def has_room(self, unit: Unit) -> bool:
        """Whether a gather of the unit could start ahead of its need."""
        ...

    def release(self, unit: Unit) -> None:
        """Give back the memory of the full form, where that is kept only while used.

        With ``own_order`` also that of a gather which is not finished.
        """
        ...

    def meet(self) -> None:
        """This rank gathers nothing more: return when the others don't either, where they need this one for that."""
        ...

    def begin(self, order: Sequence[Flat], *, last: bool) -> None:
        """A backward that reduces has begun, the ``last`` of its step or another."""
        ...

    def landing(self, flat: Flat) -> Tensor | None:
        """The buffer that is reduced without a further copy, if it is free for ``flat`` now."""
        ...

    def submit(self, flat: Flat) -> None:
        """This rank's gradients of ``flat`` are complete: reduce them, perhaps later."""
        ...

    def drain(self) -> None:
        """Finish every submitted reduction, and mark in ``touched`` what any rank has written."""
        ...

    def before_update(self) -> None:
        """Return when no rank reads parameters any more that this rank is about to overwrite."""
        ...

    def after_update(self) -> None:
        """Make this rank's new shards known."""
        ...

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        ...

    def usage(self) -> int:
        """Bytes of this rank's memory that the exchange holds; its share of what is mapped by several."""
        ...

    def shared_bytes(self) -> int:
        """Those of ``usage`` that lie in memory shared with other ranks."""
        ...

    def close(self) -> None:
        """Let go of peers and of memory that belongs to no flat."""
        ...
