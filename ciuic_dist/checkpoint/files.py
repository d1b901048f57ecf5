"""``save`` and ``load``: a sharded model on disk, through torch.distributed.checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from ciuic_dist.checkpoint import entries
from ciuic_dist.checkpoint.folder import find_complete, whole_or_absent
from ciuic_dist.checkpoint.pieces import LoadPlanner, SavePlanner
from ciuic_dist.comm.groups import world_size
from ciuic_dist.comm.together import together
from ciuic_dist.optim.paged import PagedOptimizer
from ciuic_dist.sharding.registry import sharded_of

_READING_FAILED = (RuntimeError, ValueError, KeyError, dcp.CheckpointException)


@torch.no_grad()
def save(path: str | PathLike[str], *, model: nn.Module, optimizer: PagedOptimizer | None = None, **extra: Any) -> None:
    """Write masters, optimizer state and ``extra`` (anything that pickles; rank 0's counts) to the folder ``path``.

    Every rank calls it. ``path`` changes only when all is on disk, by rename.
    Raises FileExistsError where ``path`` holds something else than a checkpoint; nothing is written then.
    """
    state = entries.model_entries(model) | {"extra": extra}
    if optimizer is not None:
        state |= entries.optimizer_entries(optimizer)
    with whole_or_absent(Path(path)) as draft, _quiet():
        dcp.save(state, storage_writer=dcp.FileSystemWriter(draft), planner=SavePlanner(), no_dist=world_size() == 1)


@torch.no_grad()
def load(path: str | PathLike[str], *, model: nn.Module, optimizer: PagedOptimizer | None = None) -> dict[str, Any]:
    """Read what ``save`` wrote, onto any number of ranks; returns ``extra``.

    Raises FileNotFoundError, or ValueError where the checkpoint is of another model or another kind of optimizer;
    nothing is changed then.
    """
    with together():
        reader = dcp.FileSystemReader(find_complete(Path(path)))
        room = _room(path, reader.read_metadata().state_dict_metadata, model, optimizer)
    with _quiet():
        try:
            dcp.load(room, storage_reader=reader, planner=LoadPlanner(), no_dist=world_size() == 1)
        except _READING_FAILED as error:
            reason = str(error).strip().splitlines()[-1]  # the first lines are the other ranks' tracebacks
            raise ValueError(f"{path} can't be loaded into this model: {reason}") from error
    sharded = sharded_of(model)
    sharded.update_begins()
    entries.install_model(model, room)
    if optimizer is not None:
        entries.install_optimizer(optimizer, room)
    sharded.update_ends()
    extra: dict[str, Any] = room.get("extra", {})
    return extra


def _room(
    path: str | PathLike[str], saved: Mapping[str, Any], model: nn.Module, optimizer: PagedOptimizer | None
) -> dict[str, Any]:
    """Memory to read into, so that a checkpoint which can't be read to its end changes nothing."""
    _check_names(path, entries.model_names(model), {name for name in saved if name.startswith("model.")})
    room = entries.model_room(model) | {name: None for name in saved if name == "extra"}
    if optimizer is not None:
        if "optimizer.groups.0" not in saved:
            raise ValueError(f"{path} holds no optimizer state: load it without optimizer=")
        room |= entries.optimizer_room(optimizer, saved)
    return room


def _check_names(path: str | PathLike[str], wanted: set[str], saved: set[str]) -> None:
    missing, unknown = sorted(wanted - saved), sorted(saved - wanted)
    if missing or unknown:
        what = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which this model lacks"
        raise ValueError(
            f"{path} is a checkpoint of another model: {what} ({len(missing)} missing, {len(unknown)} unknown in all)"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # one process alone is what we ask for; deprecations inside torch
        warnings.simplefilter("ignore")
        yield
