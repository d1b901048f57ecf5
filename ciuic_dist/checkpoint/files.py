"""``save`` and ``load``: a sharded model on disk, through torch.distributed.checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
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
from ciuic_dist.optim.paged import PagedOptimizer
from ciuic_dist.sharding.registry import sharded_of

_READING_FAILED = (RuntimeError, ValueError, KeyError, dcp.CheckpointException)


@torch.no_grad()
def save(path: str | PathLike[str], *, model: nn.Module, optimizer: PagedOptimizer | None = None, **extra: Any) -> None:
    """Write masters, optimizer state and ``extra`` (anything that pickles; rank 0's counts) to the folder ``path``.

    Every rank calls it. ``path`` changes only when all is on disk, by rename.
    """
    state = entries.model_entries(model)
    if optimizer is not None:
        state |= entries.optimizer_entries(optimizer)
    state |= {f"extra.{key}": value for key, value in extra.items()}
    with whole_or_absent(Path(path)) as draft, _quiet():
        dcp.save(state, storage_writer=dcp.FileSystemWriter(draft), planner=SavePlanner(), no_dist=world_size() == 1)


@torch.no_grad()
def load(path: str | PathLike[str], *, model: nn.Module, optimizer: PagedOptimizer | None = None) -> dict[str, Any]:
    """Read what ``save`` wrote, onto any number of ranks; returns ``extra``.

    Raises FileNotFoundError, or ValueError where the checkpoint is of another model; nothing is changed then.
    """
    reader = dcp.FileSystemReader(find_complete(Path(path)))
    saved = reader.read_metadata().state_dict_metadata
    _check_names(path, entries.model_names(model), {name for name in saved if name.startswith("model.")})
    state = entries.model_entries(model) | {name: None for name in saved if name.startswith("extra.")}
    if optimizer is not None:
        if "optimizer.groups" not in saved:
            raise ValueError(f"{path} holds no optimizer state: load it without optimizer=")
        state |= entries.expected_optimizer_entries(optimizer, saved)
    sharded = sharded_of(model)
    sharded.update_begins()
    with _quiet():
        try:
            dcp.load(state, storage_reader=reader, planner=LoadPlanner(), no_dist=world_size() == 1)
        except _READING_FAILED as error:
            reason = str(error).strip().splitlines()[-1]  # the first lines are the other ranks' tracebacks
            raise ValueError(f"{path} can't be loaded into this model: {reason}") from error
    sharded.update_ends()
    if optimizer is not None:
        entries.take_objects(optimizer, state)
    return {name.removeprefix("extra."): value for name, value in state.items() if name.startswith("extra.")}


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
