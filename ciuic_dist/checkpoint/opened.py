"""A checkpoint's folder with its manifest and indexes read and verified."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch

from ciuic_dist.checkpoint.digests import digest
from ciuic_dist.checkpoint.errors import CorruptCheckpoint, corrupt
from ciuic_dist.checkpoint.manifest import (
    MANIFEST,
    Entry,
    Manifest,
    RankFiles,
    index_from_bytes,
    manifest_from_bytes,
)

Place = tuple[str, tuple[int, ...] | None]
"""An entry's name and its box's offsets; None for an object."""


class OpenedFolder:
    """Its entries, and the file of pages that each lies in."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptCheckpoint where a file is gone, or isn't what was written as far as can be told unread."""
        self.manifest: Manifest = manifest_from_bytes(_content(path / MANIFEST), path / MANIFEST)
        self.places: dict[Place, tuple[Entry, Path]] = {}
        for files in self.manifest.files:
            pages = path / files.pages
            for entry in _verified_index(path, files):
                offsets = None if entry.box is None else entry.box.offsets
                self.places.setdefault((entry.name, offsets), (entry, pages))
        self._check_whole(path)

    @property
    def entries(self) -> Iterator[Entry]:
        """All, those of rank 0 first."""
        return (entry for entry, _ in self.places.values())

    def _check_whole(self, path: Path) -> None:
        missing: dict[str, int] = {}
        for entry in self.entries:
            if entry.box is not None:
                missing.setdefault(entry.name, prod(entry.box.shape))
                missing[entry.name] -= entry.box.numel
        for name, numel in missing.items():
            if numel:
                raise CorruptCheckpoint(f"{path} was not written whole: it lacks {numel} elements of {name}")


def dtype_of(entry: Entry) -> torch.dtype:
    """Of a tensor's entry. Raises ValueError where this torch has no such dtype."""
    assert entry.box is not None
    found = getattr(torch, entry.box.dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(  # noqa: TRY004 (it is of what was saved)
            f"{entry.name} was saved as {entry.box.dtype}, which this torch doesn't have: use a newer one"
        )
    return found


def _verified_index(path: Path, files: RankFiles) -> list[Entry]:
    index, pages = path / files.index, path / files.pages
    content = _content(index)
    if digest(content) != files.index_digest:
        raise corrupt(index, "it doesn't have the digest that the manifest names")
    if not pages.is_file():
        raise corrupt(pages, "it is gone")
    size = pages.stat().st_size
    if size != files.pages_bytes:
        raise corrupt(pages, f"it has {size} bytes of {files.pages_bytes}")
    return index_from_bytes(content, index)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise corrupt(file, "it is gone") from None
