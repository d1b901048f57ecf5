"""Checkpoints of models that torch shards (``fully_shard``), under the names of ours, so that either can go on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.optim import Optimizer

from ciuic_dist.checkpoint.entries import extra_states, persistent_buffers
from ciuic_dist.checkpoint.install import install_extra_states
from ciuic_dist.checkpoint.names import EXTRA, MODEL, SCALARS, STATE
from ciuic_dist.checkpoint.saved import Saved
from ciuic_dist.checkpoint.storage import PageWriter, reader_of
from ciuic_dist.checkpoint.torch_entries import check_shapes, small_entries_of, state_of
from ciuic_dist.comm.together import together


@torch.no_grad()
def save_torch_sharded(
    path: Path, model: nn.Module, optimizer: Optimizer, extra: dict[str, Any], *, compress: bool = False
) -> None:
    """Write what ``cd.save`` would write of the same model sharded by ciuic_dist. Every rank calls it."""
    entries = {**_tensors(model, optimizer), **small_entries_of(model, optimizer, extra)}
    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.distributed.checkpoint, about itself
        dcp.save(entries, storage_writer=PageWriter(path, compress=compress), planner=planner)


@torch.no_grad()
def load_torch_sharded(path: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Take back what ``save_torch_sharded`` or ``cd.save`` wrote, but for the groups' settings; returns ``extra``.

    Raises ValueError for a checkpoint of another model, CorruptCheckpoint, with the model half loaded, for damage.
    """
    with together():
        saved = Saved(path)
        _make_state(saved, model, optimizer)
        room: dict[str, Any] = {**_tensors(model, optimizer), **persistent_buffers(model)}
        check_shapes(saved, {name: tensor.shape for name, tensor in room.items()})
    room |= dict.fromkeys([EXTRA, *extra_states(model)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        dcp.load(room, storage_reader=reader_of(path), planner=planner)
    install_extra_states(model, room)
    extra: dict[str, Any] = room[EXTRA]
    return extra


def _tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Parameters and state, of which this rank may have a part."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        found[f"{MODEL}{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{STATE if value.dim() else SCALARS}{name}.{key}"] = value
    return found


def _make_state(saved: Saved, model: nn.Module, optimizer: Optimizer) -> None:
    """Room for all state that was saved, in the parameters' precision and in their shards."""
    for name, parameter in model.named_parameters():
        state = {}
        for _, key, entry in state_of(saved, name):
            scalar = torch.empty(entry.size, dtype=entry.properties.dtype)
            state[key] = scalar if not entry.size else torch.empty_like(parameter)
        if state:
            optimizer.state[parameter] = state
