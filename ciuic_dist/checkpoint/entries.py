"""What a checkpoint of a sharded model holds, name by name.

``model.<parameter>``                       the master values, in the parameter's shape
``model.<buffer>``                          persistent buffers, rank 0's
``optimizer.state.<parameter>.<key>``       state with one value an element, in the parameter's shape
``optimizer.scalars.<parameter>.<key>``     other state
``optimizer.groups``                        the groups' settings
``extra.<key>``                             what the caller adds
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ciuic_dist.checkpoint.pieces import BoxedPiece
from ciuic_dist.optim.paged import PagedOptimizer
from ciuic_dist.sharding.registry import sharded_of


def model_entries(model: nn.Module) -> dict[str, Any]:
    """This rank's pieces of the masters, and the buffers."""
    entries: dict[str, Any] = {}
    for flat in sharded_of(model).flats:
        for piece in flat.pieces():
            slot = flat.layout.slots[piece.index]
            values = flat.master[piece.shard_offset : piece.shard_offset + piece.numel]
            entries[f"model.{slot.name}"] = BoxedPiece(slot.shape, piece.start, values)
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent:
            entries[f"model.{name}"] = buffer
    return entries


def model_names(model: nn.Module) -> set[str]:
    """The names that all ranks' model entries make up together."""
    sharded = sharded_of(model)
    names = {f"model.{slot.name}" for flat in sharded.flats for slot in flat.layout.slots if slot.numel}
    return names | {name for name in model_entries(model) if name.startswith("model.")}


def optimizer_entries(optimizer: PagedOptimizer) -> dict[str, Any]:
    """This rank's pieces of the optimizer state; scalars from the rank that holds a parameter's first element."""
    entries: dict[str, Any] = {"optimizer.groups": optimizer.settings()}
    for flat, piece, state in optimizer.piece_states():
        slot = flat.layout.slots[piece.index]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() and value.numel() == piece.numel:
                entries[f"optimizer.state.{slot.name}.{key}"] = BoxedPiece(slot.shape, piece.start, value.view(-1))
            elif piece.start == 0:
                entries[f"optimizer.scalars.{slot.name}.{key}"] = value
    return entries


def expected_optimizer_entries(optimizer: PagedOptimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Room for the state that ``saved`` (name to metadata) has for this rank's pieces."""
    by_parameter: dict[str, list[tuple[str, str, Any]]] = {}
    for name, metadata in saved.items():
        if name.startswith(("optimizer.state.", "optimizer.scalars.")):
            parameter, _, key = name.split(".", 2)[2].rpartition(".")
            by_parameter.setdefault(parameter, []).append((name, key, metadata))
    entries: dict[str, Any] = {"optimizer.groups": None}
    for flat, piece, state in optimizer.piece_states():
        slot = flat.layout.slots[piece.index]
        state.clear()
        for name, key, metadata in by_parameter.get(slot.name, []):
            if not isinstance(metadata, TensorStorageMetadata):
                entries[name] = None
            elif name.startswith("optimizer.scalars."):
                entries[name] = state[key] = torch.zeros(metadata.size, dtype=metadata.properties.dtype)
            else:
                state[key] = torch.zeros(piece.numel, dtype=metadata.properties.dtype, device=flat.device)
                entries[name] = BoxedPiece(slot.shape, piece.start, state[key])
    return entries


def take_objects(optimizer: PagedOptimizer, entries: Mapping[str, Any]) -> None:
    """Put what isn't a tensor where the optimizer wants it."""
    optimizer.take_settings(entries["optimizer.groups"])
    for flat, piece, state in optimizer.piece_states():
        prefix = f"optimizer.scalars.{flat.layout.slots[piece.index].name}."
        for name in filter(_starts_with(prefix), entries):
            state.setdefault(name.removeprefix(prefix), entries[name])


def _starts_with(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)
