"""A vote of all ranks that threads take beside collectives, through the store of the default group."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count
from typing import Any, Final, TypeVar

import torch.distributed as dist

from ciuic_dist.comm.groups import rank, world_size

_T = TypeVar("_T")
_R = TypeVar("_R")
_numbers = count()
_LOOK_AGAIN: Final = timedelta(seconds=1)


class Ballot:
    """Made by every rank, in the same order; any one thread of each rank then calls ``decide``.

    The ranks are those of the group that is there when it is made, also where that ends meanwhile.
    """

    def __init__(self) -> None:
        self._name = f"ciuic/ballot/{next(_numbers)}"
        self._rank, self._world = rank(), world_size()
        self._left = False
        # A client is one thread's.
        self._store: Any = None if self._world == 1 else dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]

    def decide(self, vote: _T, decision: Callable[[Sequence[_T]], _R]) -> _R:
        """What ``decision`` makes on rank 0 of all ranks' votes, in their order; it must not raise.

        Waits for as long as it takes: whoever waits for the thread has a timeout. Raises RuntimeError where the store
        is gone, with the process that has it, and soon after ``leave``.
        """
        if self._world == 1:
            return decision([vote])
        if self._rank == 0:
            decided = decision([vote, *map(self._take, range(1, self._world))])
            self._store.set(self._key("all"), pickle.dumps(decided))
            return decided
        self._store.set(self._key(self._rank), pickle.dumps(vote))
        result: _R = pickle.loads(self._await("all"))  # noqa: S301 (our own)
        return result

    def leave(self) -> None:
        """Wait for nobody any more; a vote that is cast counts."""
        self._left = True

    def _take(self, other: int) -> Any:
        value = pickle.loads(self._await(other))  # noqa: S301 (our own)
        self._store.delete_key(self._key(other))
        return value

    def _await(self, who: int | str) -> bytes:
        while not self._left:
            try:
                self._store.wait([self._key(who)], _LOOK_AGAIN)
            except dist.DistNetworkError:
                raise
            except dist.DistStoreError:  # not there yet
                continue
            found: bytes = self._store.get(self._key(who))
            return found
        raise RuntimeError("this process ended before all ranks had voted")

    def _key(self, who: int | str) -> str:
        return f"{self._name}/{who}"
