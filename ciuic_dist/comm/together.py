"""What fails on one rank fails on all, with the same error, so that none waits for the others."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ciuic_dist.comm.groups import gather_objects, rank

_T = TypeVar("_T")


@contextmanager
def together() -> Iterator[None]:
    """Every rank runs the block and leaves it when all have; the first rank's Exception is raised on every rank.

    A collective in the block has to fail on all ranks or on none.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # noqa: BLE001 (raised below, on all ranks)
        error = caught
    errors = gather_objects(None if error is None else portable(error))
    errors[rank()] = error  # with its traceback
    first = next((e for e in errors if e is not None), None)
    if first is not None:
        raise first


def on_rank_zero(work: Callable[[], _T]) -> _T:
    """What ``work`` returns on rank 0, on every rank; so too the Exception it raises."""
    value: Any = None
    with together():
        if rank() == 0:
            value = work()
    result: _T = gather_objects(value)[0]
    return result


def portable(error: Exception) -> Exception:
    """``error``, or its words where it doesn't survive pickling, as many exceptions with arguments don't."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    except Exception:  # noqa: BLE001 (whatever it is, the words go through)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
