"""Writes a checkpoint's files without a word to other ranks: each writes its own, one commits when all have."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.digests import digest
from ciuic_dist.checkpoint.errors import needing_room
from ciuic_dist.checkpoint.folder import draft_of, publish
from ciuic_dist.checkpoint.manifest import (
    MANIFEST,
    Entry,
    KeyPath,
    Manifest,
    RankFiles,
    TensorBox,
    index_to_bytes,
    manifest_to_bytes,
    packages,
)
from ciuic_dist.checkpoint.pages import PageFileWriter
from ciuic_dist.checkpoint.pieces import BoxedPiece


class RankWriter:
    """One rank's pages and their index, in the draft of a checkpoint. Several threads may write at the same time.

    What writes raises NoRoom.
    """

    def __init__(self, draft: Path, rank: int) -> None:
        if not draft.is_dir():
            raise FileNotFoundError(
                f"{draft}, which rank 0 has made, isn't there on rank {rank}: save to a folder that all hosts share"
            )
        self._draft = draft
        self._rank = rank
        self._entries: list[Entry] = []
        with self._needing_room():
            self._pages = PageFileWriter(draft / RankFiles(rank, 0, 0, "").pages)

    def add(self, name: str, entry: Any, *, compress: bool = False) -> None:
        """Write a piece, a whole tensor, or anything that pickles."""
        if isinstance(entry, BoxedPiece):
            for offsets, values in entry.boxes():
                self.tensor(name, values, entry.size(), offsets, compress=compress)
        elif isinstance(entry, Tensor):
            self.tensor(name, entry, entry.shape, (0,) * entry.dim())
        else:
            content = io.BytesIO()
            torch.save(entry, content)
            self.pickled(name, content.getbuffer())

    def tensor(
        self, name: str, values: Tensor, shape: Sequence[int], offsets: Sequence[int], *, compress: bool = False
    ) -> None:
        """Write ``values``, on any device, as the box at ``offsets`` of a tensor of ``shape``."""
        box = TensorBox(str(values.dtype).removeprefix("torch."), tuple(shape), tuple(offsets), tuple(values.shape))
        flat = values.detach().to("cpu").resolve_conj().resolve_neg().reshape(-1)
        content = flat.view(torch.uint8).numpy().data
        self._append(name, box, content, values.itemsize if compress else None)

    def pickled(self, name: str, content: bytes | memoryview) -> None:
        """Write what ``torch.save`` made of an object."""
        self._append(name, None, memoryview(content), None)

    def _append(self, name: str, box: TensorBox | None, content: memoryview, itemsize: int | None) -> None:
        with self._needing_room():
            self._entries.append(Entry(name, box, tuple(self._pages.append(content, itemsize))))

    def finish(self) -> RankFiles:
        """Make all durable; what the manifest says of it."""
        with self._needing_room():
            self._pages.finish()
        index = index_to_bytes(self._entries)
        files = RankFiles(self._rank, self._pages.nbytes, len(index), digest(index))
        with self._needing_room():
            disk.write_file(self._draft / files.index, index)
        return files

    def _needing_room(self) -> AbstractContextManager[None]:
        return needing_room(self._draft.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: builtins.object) -> None:
        self._pages.__exit__()


def commit(path: Path, files: Iterable[RankFiles], paths: Mapping[str, KeyPath] | None = None) -> None:
    """Make the draft of ``path``, in which all ranks' ``files`` are durable, what is at ``path``. Raises NoRoom."""
    manifest = Manifest(tuple(sorted(files, key=lambda one: one.rank)), packages(), paths)
    with needing_room(path.parent):
        for of_rank in manifest.files:
            _check_there(draft_of(path), of_rank)
        disk.write_file(draft_of(path) / MANIFEST, manifest_to_bytes(manifest))
        publish(path)


def _check_there(draft: Path, files: RankFiles) -> None:
    """Raise FileNotFoundError where what a rank has written is elsewhere."""
    for name, nbytes in ((files.pages, files.pages_bytes), (files.index, files.index_bytes)):
        file = draft / name
        if not file.is_file() or file.stat().st_size != nbytes:
            raise FileNotFoundError(
                f"{file} of rank {files.rank} isn't there on rank 0: save to a folder that all hosts share"
            )
