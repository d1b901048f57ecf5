"""Our format for torch.distributed.checkpoint: ``dcp.save(state, storage_writer=PageWriter(path))`` and back."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ciuic_dist.checkpoint.filling import fill, pages_of
from ciuic_dist.checkpoint.folder import begin, draft_of, find_complete
from ciuic_dist.checkpoint.manifest import MANIFEST, Entry, KeyPath
from ciuic_dist.checkpoint.opened import OpenedFolder, dtype_of
from ciuic_dist.checkpoint.page_files import PageFiles
from ciuic_dist.checkpoint.pages import Page
from ciuic_dist.checkpoint.writing import RankWriter, commit


def reader_of(path: str | PathLike[str]) -> StorageReader:
    """What reads the checkpoint at ``path``, ours or a plain one of torch.distributed.checkpoint.

    Raises FileNotFoundError where there is none.
    """
    found = find_complete(Path(path))
    return PageReader(found) if (found / MANIFEST).is_file() else FileSystemReader(found)


class PageReader(StorageReader):
    """Reads a checkpoint in our format; everything that is read is verified.

    Its methods raise CorruptCheckpoint where something isn't what was written.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._opened: OpenedFolder | None = None
        self._files = PageFiles()

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Read this checkpoint next."""
        self.path = self.path if checkpoint_id is None else Path(checkpoint_id)
        self._opened = None
        self._files = PageFiles()

    def read_metadata(self) -> Metadata:
        """What there is; opens and verifies manifest and indexes."""
        self._opened = OpenedFolder(find_complete(self.path))
        found: dict[str, Any] = {}
        for entry in self._opened.entries:
            if entry.box is None:
                found[entry.name] = BytesStorageMetadata()
            else:
                found.setdefault(entry.name, _metadata_of(entry)).chunks.append(_chunk_of(entry))
        return Metadata(found, planner_data=self._opened.manifest.paths)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None:
        """Nothing is kept of what it read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what the plan asks for, page by page."""
        if self._opened is None:
            self.read_metadata()
        if not self._files.expecting:
            self.expect([plan])
        for item in plan.items:
            entry, path = self._place(item)
            read = partial(self._files.read, path, what=entry.name)
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, io.BytesIO(b"".join(bytes(read(page, once=True)) for page in entry.pages)))
            else:
                target = planner.resolve_tensor(item).detach()
                fill(target, read, entry, item.storage_offsets)
                planner.commit_tensor(item, target)
        return _done(None)

    def expect(self, plans: Iterable[LoadPlan]) -> None:
        """Read ahead, since these plans come next."""
        self._files.expect(page for plan in plans for item in plan.items for page in self._pages(item))

    def _pages(self, item: ReadItem) -> Iterator[tuple[Path, Page]]:
        entry, path = self._place(item)
        if item.type == LoadItemType.BYTE_IO:
            yield from ((path, page) for page in entry.pages)
        else:
            yield from ((path, use.page) for use in pages_of(entry, item.storage_offsets, item.lengths))

    def _place(self, item: ReadItem) -> tuple[Entry, Path]:
        assert self._opened is not None
        index = item.storage_index
        return self._opened.places[index.fqn, None if index.offset is None else tuple(index.offset)]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """Whether there is such a checkpoint."""
        return (Path(checkpoint_id) / MANIFEST).is_file()


class PageWriter(StorageWriter):
    """Writes a checkpoint in our format; ``path`` changes only when all is on disk, by rename."""

    def __init__(self, path: str | PathLike[str], *, compress: bool = False) -> None:
        self.path = Path(path)
        self._compress = compress

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Write this checkpoint next."""
        self.path = self.path if checkpoint_id is None else Path(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool) -> None:
        """Make the draft. Raises FileExistsError where ``path`` holds something else than a checkpoint."""
        if is_coordinator:
            begin(self.path)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Each with the number of its files."""
        return [replace(plan, storage_data=number) for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files; the results say what the manifest needs to know of them."""
        if not plan.items:
            return _done([])
        with RankWriter(draft_of(self.path), plan.storage_data) as writer:
            for item in plan.items:
                data = planner.resolve_data(item)
                if isinstance(data, Tensor):
                    assert item.tensor_data is not None
                    shape, offsets = item.tensor_data.size, item.tensor_data.chunk.offsets
                    writer.tensor(item.index.fqn, data, shape, offsets, compress=self._compress)
                else:
                    writer.pickled(item.index.fqn, data.getbuffer())
            files = writer.finish()
        return _done([WriteResult(item.index, files.pages_bytes, files) for item in plan.items])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit. Raises ValueError where a planner wants other things kept than the places of entries in dicts."""
        commit(self.path, {result.storage_data for of_rank in results for result in of_rank}, _paths(metadata))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """Whether it can be a path."""
        return isinstance(checkpoint_id, str | os.PathLike)


def _metadata_of(entry: Entry) -> TensorStorageMetadata:
    assert entry.box is not None
    return TensorStorageMetadata(TensorProperties(dtype=dtype_of(entry)), torch.Size(entry.box.shape), [])


def _chunk_of(entry: Entry) -> ChunkStorageMetadata:
    assert entry.box is not None
    return ChunkStorageMetadata(torch.Size(entry.box.offsets), torch.Size(entry.box.sizes))


def _paths(metadata: Metadata) -> dict[str, KeyPath] | None:
    kept: Any = metadata.planner_data
    if kept is None:
        return None
    if not isinstance(kept, dict) or not all(isinstance(part, str | int) for path in kept.values() for part in path):
        raise ValueError(f"this format keeps no planner_data but the paths of a DefaultSavePlanner, got {type(kept)}")
    return {name: tuple(path) for name, path in kept.items()}


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
