"""What a checkpoint of a sharded model holds, name by name.

``model.<parameter>``                       the master values, in the parameter's shape
``model.<buffer>``                          persistent buffers, rank 0's
``model.<module>._extra_state``             what the module's get_extra_state gives, rank 0's, in a tuple of one
``optimizer.state.<parameter>.<key>``       state with one value an element, in the parameter's shape
``optimizer.scalars.<parameter>.<key>``     other state
``optimizer.groups.<number>``               a group's settings
``optimizer.kind.<class>``                  nothing; the name says whose state it is
``extra``                                   a dict of what the caller adds, rank 0's
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ciuic_dist.checkpoint.pieces import BoxedPiece, room_for
from ciuic_dist.comm.groups import device
from ciuic_dist.optim.paged import PagedOptimizer, StateValues
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.values import read_piece, write_piece

_EXTRA_STATE = "_extra_state"  # as torch names it in state dicts
_KIND = "optimizer.kind."


def model_entries(model: nn.Module) -> dict[str, Any]:
    """This rank's pieces of the masters, the buffers, and the modules' extra state."""
    entries: dict[str, Any] = {}
    for flat in sharded_of(model).flats:
        for piece in flat.pieces():
            slot = flat.layout.slots[piece.index]
            read = partial(read_piece, flat, piece)
            entries[f"model.{slot.name}"] = BoxedPiece(slot.shape, piece.start, piece.numel, flat.master_dtype, read)
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent:
            entries[f"model.{name}"] = buffer
    for name, value in persistent.items():
        if name.rpartition(".")[2] == _EXTRA_STATE:
            entries[f"model.{name}"] = (value,)  # no tensor by itself: its shape may be another when it is loaded
    return entries


def model_names(model: nn.Module) -> set[str]:
    """The names that all ranks' model entries make up together."""
    sharded = sharded_of(model)
    names = {f"model.{slot.name}" for flat in sharded.flats for slot in flat.layout.slots if slot.numel}
    return names | {name for name in model_entries(model) if name.startswith("model.")}


def model_room(model: nn.Module) -> dict[str, Any]:
    """The model's entries with memory of their own, to read into."""
    return {name: _room(entry) for name, entry in model_entries(model).items()}


def install_model(model: nn.Module, read: Mapping[str, Any]) -> None:
    """Make what was read the model's."""
    for flat in sharded_of(model).flats:
        with flat.held():
            for piece in flat.pieces():
                write_piece(flat, piece, read[f"model.{flat.layout.slots[piece.index].name}"].read())
    for name, entry in model_entries(model).items():
        if isinstance(entry, BoxedPiece):
            continue
        if isinstance(entry, Tensor):
            entry.copy_(read[name])
        else:
            path = name.removeprefix("model.").removesuffix(_EXTRA_STATE).removesuffix(".")
            model.get_submodule(path).set_extra_state(read[name][0])


def _room(entry: Any) -> Any:
    if isinstance(entry, BoxedPiece):
        return room_for(entry.size(), entry.start, entry.numel, entry.dtype, device())
    return torch.empty_like(entry) if isinstance(entry, Tensor) else None


def optimizer_entries(optimizer: PagedOptimizer) -> dict[str, Any]:
    """This rank's pieces of the optimizer state; scalars from the rank that holds a parameter's first element."""
    entries: dict[str, Any] = {f"optimizer.groups.{i}": group for i, group in enumerate(optimizer.settings())}
    entries[_KIND + _kind(optimizer)] = None
    for flat, piece, state in optimizer.piece_states():
        slot = flat.layout.slots[piece.index]
        for key, value in state.items():
            if isinstance(value, StateValues):
                boxed = BoxedPiece(slot.shape, piece.start, value.numel, value.dtype, value.read)
                entries[f"optimizer.state.{slot.name}.{key}"] = boxed
            elif piece.start == 0:
                entries[f"optimizer.scalars.{slot.name}.{key}"] = value
    return entries


def optimizer_room(optimizer: PagedOptimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Room for what ``saved`` (name to metadata) has for this rank's pieces.

    Raises ValueError for another kind of optimizer or another number of groups.
    """
    _check_kind(optimizer, saved)
    groups = [name for name in saved if name.startswith("optimizer.groups.")]
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(f"{len(groups)} parameter groups were saved, {len(optimizer.param_groups)} are here")
    entries: dict[str, Any] = dict.fromkeys(groups)
    by_parameter = _by_parameter(saved)
    for flat, piece in optimizer.places():
        slot = flat.layout.slots[piece.index]
        for name in by_parameter.get(slot.name, {}).values():
            metadata = saved[name]
            if not isinstance(metadata, TensorStorageMetadata):
                entries[name] = None
            elif name.startswith("optimizer.scalars."):
                entries[name] = torch.empty(metadata.size, dtype=metadata.properties.dtype)
            else:
                dtype = metadata.properties.dtype
                entries[name] = room_for(slot.shape, piece.start, piece.numel, dtype, flat.device)
    return entries


def _check_kind(optimizer: PagedOptimizer, saved: Mapping[str, Any]) -> None:
    here, instead = _kind(optimizer), "make an optimizer of that kind, or load without optimizer="
    kinds = [name.removeprefix(_KIND) for name in saved if name.startswith(_KIND)]
    if kinds and kinds != [here]:
        raise ValueError(f"the optimizer state that was saved is {kinds[0]}'s, the optimizer here is {here}: {instead}")
    if not kinds:  # saved before kinds were; settings such as amsgrad add keys, so one may have more than the other
        theirs, ours = {key for names in _by_parameter(saved).values() for key in names}, _state_keys(optimizer)
        if not (theirs <= ours or ours <= theirs):
            was, has = (", ".join(sorted(keys)) for keys in (theirs, ours))
            raise ValueError(f"the optimizer state that was saved is {was}, {here} here has {has}: {instead}")


def _kind(optimizer: PagedOptimizer) -> str:
    return type(optimizer.inner).__name__


def _state_keys(optimizer: PagedOptimizer) -> set[str]:
    """What the optimizer keeps for a parameter once it has stepped."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    trial = copy.copy(optimizer.inner)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**optimizer.inner.param_groups[0], "params": [parameter]}]
    trial.step()
    return set(trial.state[parameter])


def install_optimizer(optimizer: PagedOptimizer, read: Mapping[str, Any]) -> None:
    """Make what was read the optimizer's state and settings."""
    by_parameter = _by_parameter(read)
    states = []
    for flat, piece in optimizer.places():
        names = by_parameter.get(flat.layout.slots[piece.index].name, {})
        entries = {key: read[name] for key, name in names.items()}
        states.append({key: e.read() if isinstance(e, BoxedPiece) else e for key, e in entries.items()})
    settings = [read[f"optimizer.groups.{i}"] for i in range(len(optimizer.param_groups))]
    optimizer.take(states, settings)


def _by_parameter(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The entry name of each key of each parameter's state."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if name.startswith(("optimizer.state.", "optimizer.scalars.")):
            parameter, _, key = name.split(".", 2)[2].rpartition(".")
            found.setdefault(parameter, {})[key] = name
    return found
