"""A folder that all ranks write into and that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ciuic_dist.comm.together import on_rank_zero, together

_METADATA = ".metadata"  # torch.distributed.checkpoint writes it last


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a folder to write into; it becomes ``path`` by rename when every rank is through.

    A checkpoint that ``path`` held before stays until then (and, for a crash between two renames, as
    ``<path>.previous``). Every rank enters and leaves; an exception on one is raised on all, and leaves ``path``
    as it was. Raises FileExistsError, before anything is written, where ``path`` holds something else.
    """
    draft = path.with_name(path.name + ".partial")
    on_rank_zero(partial(_begin, path, draft))
    with together():
        yield draft
    on_rank_zero(partial(_publish, draft, path))


def find_complete(path: Path) -> Path:
    """``path``, or what it held before a replacement that a crash cut short. Raises FileNotFoundError."""
    for candidate in (path, _previous(path)):
        if (candidate / _METADATA).is_file():
            return candidate
    raise FileNotFoundError(f"there is no checkpoint at {path}")


def _begin(path: Path, draft: Path) -> None:
    for folder in (path, _previous(path)):
        if not _is_replaceable(folder):
            raise FileExistsError(
                f"{folder} is there and is not a checkpoint, so it won't be replaced: save to another path"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()


def _is_replaceable(path: Path) -> bool:
    if not path.is_dir():
        return not path.exists()
    return (path / _METADATA).is_file() or not any(path.iterdir())


def _publish(draft: Path, path: Path) -> None:
    _sync_folder(draft)
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    draft.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
