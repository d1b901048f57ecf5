"""Process groups that somebody has alone: nobody else's operations are between theirs."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from ciuic_dist.comm.collectives import Flight
from ciuic_dist.comm.groups import device, timeout_seconds

_left_behind: deque[dist.ProcessGroup] = deque()


def new_group(ranks: list[list[int]]) -> dist.ProcessGroup:
    """A group for each of the lists, of which this rank gets the one that it is in. Collective over all ranks."""
    end_groups([_left_behind.popleft() for _ in range(len(_left_behind))])
    own: dist.ProcessGroup
    own, _ = dist.new_subgroups_by_enumeration(
        ranks,
        timeout=timedelta(seconds=timeout_seconds()),
        backend=dist.get_default_backend_for_device(device()),
    )
    return own


def end_groups(groups: Iterable[dist.ProcessGroup]) -> None:
    """Nothing is under way in them, and all their ranks do so."""
    for group in groups:
        with suppress(ValueError):  # the user has ended them all
            dist.destroy_process_group(group)


def end_with(
    owner: object, groups: Sequence[dist.ProcessGroup], under_way: Callable[[], Iterable[Flight]]
) -> weakref.finalize[..., object]:
    """End ``groups`` some time after ``owner`` is gone, unless it was ended before; ``under_way`` doesn't hold it."""
    end = weakref.finalize(owner, _leave_behind, groups, under_way)
    end.atexit = False
    return end


def _leave_behind(groups: Sequence[dist.ProcessGroup], under_way: Callable[[], Iterable[Flight]]) -> None:
    """The owner is gone: end its groups when one is next made, not in the middle of a garbage collection.

    An idle group of Gloo has a thread that wakes up a hundred times a second. Others can't be ended by one rank alone,
    nor can one that waits for a peer.
    """
    if device().type == "cpu" and all(flight.has_landed() for flight in under_way()):
        _left_behind.extend(groups)
