"""What to fetch, what to evict for it and what to write back ahead of time.

A policy is data: a ranking of victims and three rules. Whatever it may know is in the `View`, so a decision
is a pure function of it. Ours are `rotating` (MIN with prefetching, after L. A. Belady, 1966) and `static_ring`,
which keeps a fixed set resident and does the same with the rest in the room that is left; `paged` is the ring that
the engine has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from ciuic_dist.planning.flight import UNITS_IN_FLIGHT
from ciuic_dist.planning.residency import stay
from ciuic_dist.planning.trace import Kind, Op, Trace
from ciuic_dist.planning.view import View

EARLY = ", written back early"

Rank = Callable[[View, int], float]
"""How readily an item is evicted: the highest goes first."""


def furthest(view: View, item: int) -> float:
    """The use that is furthest away goes first."""
    return view.next_use[item]


@dataclass(frozen=True)
class Policy:
    """How a run of a trace uses its room and its links."""

    name: str
    rank: Rank = furthest
    static: frozenset[int] = frozenset()
    """Items that are never evicted."""
    expected: tuple[tuple[int, ...], ...] | None = None
    """For each operation, what to fetch ahead while it runs, in order; None: all that is missing, soonest first."""
    guarded: bool = True
    """Fetch ahead only in place of what is needed later than what is fetched."""
    background: frozenset[Kind] = frozenset()
    """What is written back ahead of time, while the link down idles. It moves more bytes, since not all of it is
    evicted before it changes again, and pays where room is needed at once: for a gradient, or for large parameters."""

    def fetch(self, view: View) -> int | None:
        """The item to fetch ahead, or None."""
        if self.expected is None:
            return min(self._ranked(view, view.absent), default=(0.0, None))[1]
        return next((item for item in self.expected[view.index] if item in view.absent), None)

    def victims(self, view: View, incoming: int, size: int, *, demanded: bool) -> list[int] | None:
        """Items to evict so that at least ``size`` bytes get free for ``incoming``, or None if it isn't to be.

        ``demanded``: the current operation waits for it.
        """
        limit = self.rank(view, incoming) if self.guarded and not demanded else -math.inf
        found: list[int] = []
        for rank, victim in sorted(self._ranked(view, self._evictable(view, view.resident)), reverse=True):
            if size <= 0 or rank <= limit:
                break
            found.append(victim)
            size -= view.trace.items[victim].size
        return found if size <= 0 else None

    def clean(self, view: View) -> int | None:
        """The dirty item to write back ahead of time, or None: the one that is evicted first."""
        if not self.background or not view.absent:
            return None
        dirty = {item for item in view.resident & view.dirty if view.trace.items[item].kind in self.background}
        return max(self._ranked(view, self._evictable(view, dirty)), default=(0.0, None))[1]

    def _evictable(self, view: View, items: set[int]) -> set[int]:
        return items - self.static - set(view.pinned)

    def _ranked(self, view: View, items: Iterable[int]) -> list[tuple[float, int]]:
        rank = self.rank
        return [(rank(view, item), item) for item in items]


def rotating(*, background: bool = False) -> Policy:
    """MIN that fetches ahead: while the link idles, the soonest missing item replaces the furthest one."""
    return Policy("rotating" + EARLY * background, background=_all_kinds(background))


def static_ring(trace: Trace, room: int, ring: int, *, background: bool = False) -> Policy:
    """Keep what is dearest to move within ``room - ring`` bytes; the rest goes through ``ring`` bytes.

    The dearness of a byte is how often a step would move it: state once, parameters twice, each way. What is
    spilled of one dearness lies evenly spread in the order of use.
    """
    left = room - ring
    static: set[int] = set()
    for kind in sorted(Kind, key=lambda kind: -_moves(trace, kind)):
        items = [item for item in range(len(trace.items)) if _is(trace, item, kind)]
        items.sort(key=lambda item: trace.uses[item][-1:])
        sizes = [trace.items[item].size for item in items]
        kept = [item for item, stays in zip(items, stay(sizes, max(left, 0)), strict=True) if stays]
        static.update(kept)
        left -= trace.bytes_of(kept)
    name = f"static + ring of {ring / 2**30:.1f} GiB" + EARLY * background
    return Policy(name, static=frozenset(static), background=_all_kinds(background))


def _all_kinds(background: bool) -> frozenset[Kind]:
    return frozenset(Kind) if background else frozenset()


def paged(trace: Trace, room: int) -> Policy:
    """What the engine does: a ring in which the state of the largest unit comes while the one before it is updated.

    Beside it is what one operation needs, and several units in flight, unless all parameters stay. Gradients have slots
    of their own there; here they share the ring, so state that is dirty must not be in their way.
    """
    sizes = [item.size for item in trace.items if item.kind is Kind.PARAMETER]
    wholes = groupby(trace.ops, key=lambda op: op.name)
    coming = max(_state_bytes(trace, ops) for _, ops in wholes)
    ring = trace.largest + coming
    if sum(sizes) > room - ring:
        ring += UNITS_IN_FLIGHT * max(sizes)
    makes = any(op.creates for op in trace.ops)
    return replace(static_ring(trace, room, min(ring, room)), background=frozenset([Kind.STATE] if makes else []))


def _state_bytes(trace: Trace, ops: Iterable[Op]) -> int:
    used = {item for op in ops for item in op.uses}
    return trace.bytes_of(item for item in used if _is(trace, item, Kind.STATE))


def _is(trace: Trace, item: int, kind: Kind) -> bool:
    return trace.items[item].kind is kind


def _moves(trace: Trace, kind: Kind) -> float:
    """Uses of an item of this kind in a round, on average."""
    uses = [len(trace.uses[item]) for item in range(len(trace.items)) if _is(trace, item, kind)]
    return sum(uses) / max(len(uses), 1)
