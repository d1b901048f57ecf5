"""What other systems do: demand paging with the classic replacement rules, and prefetching by prediction.

Each peer gets what favours it: tables learned from the very trace that is replayed, write-back while the link
idles where it fetches ahead, and the better of two windows (see `windows`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from ciuic_dist.planning.policy import Policy, Rank, furthest
from ciuic_dist.planning.trace import Kind, Trace
from ciuic_dist.planning.view import View


def oldest(view: View, item: int) -> float:
    """LRU: the item not used for longest goes first; a fetch counts as a use."""
    return -max(view.last_use[item], view.fetched[item])


def first_in(view: View, item: int) -> float:
    """FIFO: the item fetched first goes first."""
    return -view.fetched[item]


def rarest(view: View, item: int) -> float:
    """LFU: the item used least often so far goes first, the oldest of those that tie."""
    return -view.counts[item] - 1 / (2 + view.last_use[item])


def demand(name: str, rank: Rank, trace: Trace) -> Policy:
    """Fetch nothing before it is needed."""
    return Policy(name, rank, expected=((),) * len(trace.ops), guarded=False)


def min_on_demand(trace: Trace) -> Policy:
    """MIN (Belady, 1966) as it is: no policy that fetches on demand has fewer misses, if items are equally large."""
    return demand("MIN", furthest, trace)


def look_ahead(name: str, rank: Rank, trace: Trace, window: int) -> Policy:
    """Fetch what the next ``window`` accesses need, with exact knowledge of the future."""
    items = [item for _, item in trace.accesses]
    ends = _ends(trace)
    ahead = tuple(tuple(items[(end + step) % len(items)] for step in range(window)) for end in ends)
    return Policy(name, rank, expected=ahead, guarded=False, background=frozenset(Kind))


def markov(name: str, order: int, trace: Trace, window: int) -> Policy:
    """LRU, and fetch the likeliest next ``window`` items given the last ``order`` ones."""
    items = [item for _, item in trace.accesses]
    successors: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for index, item in enumerate(items):
        successors[tuple(items[(index - back) % len(items)] for back in range(order, 0, -1))][item] += 1
    likeliest = {context: counts.most_common(1)[0][0] for context, counts in successors.items()}

    def chain(end: int) -> Iterator[int]:
        context = tuple(items[(end - back) % len(items)] for back in range(order, 0, -1))
        for _ in range(window):
            if context not in likeliest:
                return
            item = likeliest[context]
            yield item
            context = (*context[1:], item)

    return Policy(
        name,
        oldest,
        expected=tuple(tuple(chain(end)) for end in _ends(trace)),
        guarded=False,
        background=frozenset(Kind),
    )


def windows(trace: Trace, room: int) -> tuple[int, ...]:
    """Numbers of accesses: about a 16th and a quarter of what the room holds."""
    held = len(trace.items) * room // trace.size
    return tuple(sorted({max(2, held // part) for part in (16, 4)}))


def peers(trace: Trace, room: int) -> Iterator[Policy]:
    """All of them; those of one name differ in the window only."""
    yield demand("LRU", oldest, trace)
    yield demand("FIFO", first_in, trace)
    yield demand("LFU", rarest, trace)
    for window in windows(trace, room):
        yield look_ahead("LRU + look-ahead", oldest, trace, window)
        yield look_ahead("LFU + look-ahead", rarest, trace, window)
        yield markov("Markov-1", 1, trace, window)
        yield markov("Markov-2", 2, trace, window)


def _ends(trace: Trace) -> list[int]:
    """For each operation, how many accesses of the round are over when it runs."""
    ends = [0]
    for op in trace.ops:
        ends.append(ends[-1] + len(op.uses))
    return ends[1:]
