"""A folder that all ranks write into and that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ciuic_dist.comm.groups import gather_objects, rank


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a folder to write into; it becomes ``path`` by rename when every rank is through.

    What ``path`` held before stays until then (and, for a crash between two renames, as ``<path>.previous``).
    Every rank enters and leaves; an exception on one leaves ``path`` as it was.
    """
    draft = path.with_name(path.name + ".partial")
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    gather_objects(None)
    yield draft
    gather_objects(None)
    if rank() == 0:
        _sync_folder(draft)
        previous = _previous(path)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            path.rename(previous)
        draft.rename(path)
        _sync_folder(path.parent)
        shutil.rmtree(previous, ignore_errors=True)
    gather_objects(None)


def find_complete(path: Path) -> Path:
    """``path``, or what it held before a replacement that a crash cut short. Raises FileNotFoundError."""
    for candidate in (path, _previous(path)):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"there is no checkpoint at {path}")


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
