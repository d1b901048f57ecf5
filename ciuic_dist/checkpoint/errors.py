"""What reading a checkpoint can find out, and writing one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CorruptCheckpoint(ValueError):
    """A checkpoint isn't what was written; the message names the file, and the page or entry."""


def corrupt(file: Path, what: str) -> CorruptCheckpoint:
    """The error for ``file``, of which ``what`` is wrong."""
    return CorruptCheckpoint(
        f"{file}: {what}; it was damaged after it was written: load another checkpoint, or put back a copy of the file"
    )


class NoRoom(OSError):
    """The drive is full, or a quota used up; the checkpoints that were there are as they were."""


@contextmanager
def needing_room(folder: Path) -> Iterator[None]:
    """Raises NoRoom, saying what to do, where what is written in ``folder`` finds none."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise NoRoom(
            error.errno,
            f"{error.strerror}: make room in {folder} and save or start again, or write elsewhere; "
            f"the checkpoints that are there are whole",
        ) from error
