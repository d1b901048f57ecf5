"""Kills a process before any change it makes to the disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Final, Self

from ciuic_dist.checkpoint import stream

KILLED: Final = 9
CHANGES: Final = ("open", "write", "fsync", "mkdir", "rename", "rmdir", "unlink")


class Changes:
    """While the context lasts, all of this process's threads count their changes to the disk.

    Before the ``last``-th, from 1, the process ends as by ``kill -9``; of a write there the part ``torn`` is still
    written. Nothing waits for the disk meanwhile: what is written survives a kill.
    """

    def __init__(self, last: int | None = None, torn: float = 0.0) -> None:
        self.made = 0
        self._last = last
        self._torn = torn
        self._numbers = count(1)
        self._originals = {name: getattr(os, name) for name in CHANGES}
        self._stream = {name: vars(stream)[name] for name in ("BUFFER_BYTES", "bypass_cache")}

    def __enter__(self) -> Self:
        vars(stream).update(BUFFER_BYTES=256, bypass_cache=_refused)  # many writes, of any length
        for name, original in self._originals.items():
            setattr(os, name, self._counted(name, original))
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in self._originals.items():
            setattr(os, name, original)
        vars(stream).update(self._stream)

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:
                self.made = number = next(self._numbers)
                if number == self._last:
                    if name == "write":
                        original(args[0], args[1][: int(len(args[1]) * self._torn)])
                    os._exit(KILLED)
            return None if name == "fsync" else original(*args, **kwargs)

        return change


@contextmanager
def unsynced() -> Iterator[None]:
    """Nothing waits for the disk."""
    fsync = os.fsync
    os.fsync = _nothing
    try:
        yield
    finally:
        os.fsync = fsync


def _refused(descriptor: int) -> bool:
    """The page cache can't be left out."""
    return False


def _nothing(fd: object) -> None:
    """Instead of a sync."""


def in_a_copy(work: Callable[[], object]) -> int:
    """Run ``work`` in a copy of this process, whose id is returned; it ends with 0 where ``work`` does, 1 if not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads: there are none
        child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return child


def code_of(child: int) -> int:
    """How a copy ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def was_killed(work: Callable[[], object]) -> bool:
    """Run ``work`` in a copy of this process; False where it comes to its end."""
    code = code_of(in_a_copy(work))
    assert code in {0, KILLED}, code
    return code == KILLED
