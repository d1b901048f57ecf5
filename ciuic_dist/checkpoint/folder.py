"""A folder that all ranks write into and that is there whole or not at all.

``<path>.partial`` is the draft, and what is being deleted; ``<path>.previous`` what ``path`` held, between two renames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.errors import CorruptCheckpoint, needing_room
from ciuic_dist.checkpoint.manifest import MANIFEST
from ciuic_dist.comm.together import on_rank_zero, together

_WRITTEN_LAST = (MANIFEST, ".metadata")  # by us, by torch.distributed.checkpoint


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a folder to write into; it becomes ``path`` by rename when every rank is through.

    Every rank enters and leaves; an exception on one is raised on all, and leaves ``path`` as it was. Raises as
    ``begin``.
    """
    on_rank_zero(partial(begin, path))
    with together():
        yield draft_of(path)
    on_rank_zero(partial(publish, path))


def draft_of(path: Path) -> Path:
    """Where what will be ``path`` is written."""
    return path.with_name(path.name + ".partial")


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was written there to its end."""
    return any((path / name).is_file() for name in _WRITTEN_LAST)


def find_complete(path: Path) -> Path:
    """``path``, or what it held before a replacement that a crash cut short.

    Raises FileNotFoundError, or CorruptCheckpoint where a checkpoint has lost its manifest.
    """
    for candidate in (path, _previous(path)):
        if is_complete(candidate):
            return candidate
    if any(path.glob("rank-*")):
        raise CorruptCheckpoint(f"{path / MANIFEST}: it is gone: load another checkpoint, or restore it from a copy")
    raise FileNotFoundError(f"there is no checkpoint at {path}")


def begin(path: Path) -> None:
    """Make the draft. Raises FileExistsError, before anything is written, where ``path`` is no checkpoint; NoRoom."""
    previous = _previous(path)
    for folder in (path, previous):
        if not _is_replaceable(folder) or draft_of(folder).is_file():
            raise FileExistsError(
                f"{folder} is there and is not a checkpoint, so it won't be replaced: save to another path"
            )
    with needing_room(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_complete(path) and previous.exists():
            discard(previous)
        disk.delete(draft_of(path))
        disk.delete(draft_of(previous))
        disk.make_folder(draft_of(path))


def give_up(path: Path) -> None:
    """Delete the draft, as far as that can be done: what failed for lack of room shouldn't keep any."""
    with suppress(OSError):
        disk.delete(draft_of(path))


def publish(path: Path) -> None:
    """Make the draft, whose files are durable, what is at ``path``; what was there is deleted when that is durable."""
    previous = _previous(path)
    disk.sync_folder(draft_of(path))
    if is_complete(path):
        disk.rename(path, previous)
    disk.rename(draft_of(path), path)
    disk.sync_folder(path.parent)
    if previous.exists():
        discard(previous)


def discard(path: Path) -> None:
    """Delete a folder; a crash half-way leaves nothing that looks complete."""
    doomed = draft_of(path)
    disk.delete(doomed)
    disk.rename(path, doomed)
    disk.sync_folder(path.parent)
    disk.delete(doomed)


def recover(path: Path) -> None:
    """Put back what ``path`` held before a replacement that a crash cut short."""
    if not path.exists() and is_complete(_previous(path)):
        disk.rename(_previous(path), path)


def _is_replaceable(path: Path) -> bool:
    if not path.is_dir():
        return not path.exists()
    return is_complete(path) or not any(path.iterdir())


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")
