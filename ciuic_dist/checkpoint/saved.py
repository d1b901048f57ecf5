"""A checkpoint that is open for reading, in our format or a plain one of torch.distributed.checkpoint."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import STORAGE_TYPES
from torch.distributed.checkpoint.planner import LoadPlan

from ciuic_dist.checkpoint.errors import CorruptCheckpoint
from ciuic_dist.checkpoint.names import state_names
from ciuic_dist.checkpoint.pieces import LoadPlanner
from ciuic_dist.checkpoint.storage import PageReader, reader_of

_UNREADABLE = (AssertionError, EOFError, FileNotFoundError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError)


class Saved:
    """What was saved under which name; read by each rank for itself, as much at a time as it asks for."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Raises FileNotFoundError where there is none, CorruptCheckpoint where it can't be read."""
        self.path = Path(path)
        self._reader = reader_of(path)
        with self._readable():
            self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    @property
    def entries(self) -> dict[str, STORAGE_TYPES]:
        """Of each name whether it is a tensor, and its shape and dtype."""
        return self._metadata.state_dict_metadata

    @cached_property
    def states(self) -> dict[str, dict[str, str]]:
        """See ``state_names``."""
        return state_names(self.entries)

    def read(self, room: dict[str, Any]) -> dict[str, Any]:
        """Fill tensors and boxed pieces in ``room``, and replace what was saved as objects; returns ``room``.

        Raises CorruptCheckpoint where that isn't what was written.
        """
        planner, plan = self._planned(room)
        with self._readable():
            self._reader.read_data(plan, planner).wait()
        return room

    def expect(self, rooms: Iterable[dict[str, Any]]) -> None:
        """Read ahead, since the like of these are filled next; no values are needed, tensors may be meta."""
        if isinstance(self._reader, PageReader):
            self._reader.expect(self._planned(room)[1] for room in rooms)

    def _planned(self, room: dict[str, Any]) -> tuple[LoadPlanner, LoadPlan]:
        planner = LoadPlanner()
        planner.set_up_planner(room, self._metadata, is_coordinator=True)
        return planner, self._reader.prepare_local_plan(planner.create_local_plan())

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """A file without checksums shows its damage in whatever error it leads to."""
        if isinstance(self._reader, PageReader):
            yield
            return
        try:
            yield
        except _UNREADABLE as error:
            raise CorruptCheckpoint(f"{self.path} can't be read: {error}") from error
