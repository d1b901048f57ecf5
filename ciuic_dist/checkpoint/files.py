"""``save`` and ``load``: a sharded model on disk."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ciuic_dist.checkpoint.entries import small_entries, spans_of
from ciuic_dist.checkpoint.folder import begin, draft_of, give_up
from ciuic_dist.checkpoint.install import check_model, check_optimizer, install_model, install_optimizer, read_objects
from ciuic_dist.checkpoint.names import EXTRA
from ciuic_dist.checkpoint.saved import Saved
from ciuic_dist.checkpoint.saving import Saving
from ciuic_dist.checkpoint.snapshot import Snapshot
from ciuic_dist.checkpoint.writing import RankWriter
from ciuic_dist.comm.ballot import Ballot
from ciuic_dist.comm.groups import rank
from ciuic_dist.comm.together import on_rank_zero, together
from ciuic_dist.optim.paged import PagedOptimizer
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.sharded import Sharded


@torch.no_grad()
def save(
    path: str | PathLike[str],
    *,
    model: nn.Module,
    optimizer: PagedOptimizer | None = None,
    wait: bool = True,
    compress: bool = False,
    **extra: Any,
) -> Saving:
    """Write masters, optimizer state and ``extra`` (anything that pickles; rank 0's counts) to the folder ``path``.

    Every rank calls it. ``path`` changes only when all is on disk, by rename. Without ``wait`` training goes on
    meanwhile, and all is written as it is now: see ``Saving``. Nothing is copied but, under a budget, some pages at a
    time to where activations were. A checkpoint of the model that is still in the making is waited for first.
    ``compress``: without loss, what is read outside of updates; a core takes some 1.2 s a GB (``compress.lossless``).

    Raises FileExistsError where ``path`` holds something else than a checkpoint; nothing is written then. NoRoom,
    an OSError, on all ranks where the drive of any is full; what was written for this checkpoint is deleted then.
    """
    folder, sharded, ballot = Path(path), sharded_of(model), Ballot()
    if sharded.keeper is not None:
        sharded.keeper.wait()
    with together():
        sharded.refuse_while_updating()
    on_rank_zero(partial(begin, folder))
    with ExitStack() as stack:
        if rank() == 0:
            stack.callback(give_up, folder)
        with together():
            writer = stack.enter_context(RankWriter(draft_of(folder), rank()))
            for name, entry in small_entries(model, optimizer, extra):
                writer.add(name, entry)
            snapshot = Snapshot(spans_of(model, optimizer), writer, room=sharded.idle_bytes, compress=compress)
            saving = Saving(folder, sharded, snapshot, writer, ballot)
        stack.pop_all()
    saving.begin()
    if wait:
        saving.wait()
    return saving


@torch.no_grad()
def load(path: str | PathLike[str], *, model: nn.Module, optimizer: PagedOptimizer | None = None) -> dict[str, Any]:
    """Read what ``save`` wrote, onto any number of ranks; returns ``extra``.

    Also what ``torch.distributed.checkpoint`` wrote under the same names. Raises FileNotFoundError, ValueError where
    the checkpoint is of another model or another kind of optimizer, and CorruptCheckpoint, a ValueError, where it
    isn't what was written. Nothing is changed then, unless a page that is damaged is come upon in the middle: from
    then on the model refuses to be used, until a load succeeds.
    """
    _see_to_an_end(sharded_of(model))
    with together():
        saved = Saved(path)
        check_model(saved, model)
        if optimizer is not None:
            check_optimizer(saved, optimizer)
        objects = read_objects(saved, model)
    with sharded_of(model).replacing(f"loading {path} failed half-way"), together():
        install_model(model, saved, objects)
        if optimizer is not None:
            install_optimizer(optimizer, saved, objects)
    extra: dict[str, Any] = objects.get(EXTRA, {})
    return extra


def _see_to_an_end(sharded: Sharded) -> None:
    """A checkpoint in the making that fails doesn't keep another from being loaded."""
    if sharded.keeper is not None:
        try:
            sharded.keeper.wait()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is of another checkpoint)
            warnings.warn(f"a checkpoint in the making failed: {error}", RuntimeWarning, stacklevel=3)
