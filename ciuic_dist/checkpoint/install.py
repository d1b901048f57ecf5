"""Puts what was saved into a model and its optimizer: first everything is checked, then it streams in."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import STORAGE_TYPES, TensorStorageMetadata

from ciuic_dist.checkpoint.entries import extra_states, kind_of, persistent_buffers
from ciuic_dist.checkpoint.names import EXTRA, EXTRA_STATE, GROUPS, KIND, MODEL, SCALARS, STATE, state_names
from ciuic_dist.checkpoint.pieces import BoxedPiece
from ciuic_dist.checkpoint.saved import Saved
from ciuic_dist.memory.scratch import Scratch
from ciuic_dist.optim.paged import PagedOptimizer
from ciuic_dist.optim.parts import Part
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.layout import Piece, Slot
from ciuic_dist.sharding.registry import sharded_of


def check_model(saved: Saved, model: nn.Module) -> None:
    """Raise ValueError where it was another model."""
    wanted = _shapes(model)
    known = wanted.keys() | extra_states(model).keys()
    there = {name for name in saved.entries if name.startswith(MODEL)}
    missing, unknown = sorted(known - there), sorted(there - known)
    if missing or unknown:
        what = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which this model lacks"
        raise ValueError(
            f"{saved.path} is a checkpoint of another model: {what} "
            f"({len(missing)} missing, {len(unknown)} unknown in all)"
        )
    _check_shapes(saved, wanted)


def check_optimizer(saved: Saved, optimizer: PagedOptimizer) -> None:
    """Raise ValueError where there is no state, another optimizer's, or another number of groups."""
    groups = [name for name in saved.entries if name.startswith(GROUPS)]
    if not groups:
        raise ValueError(f"{saved.path} holds no optimizer state: load it without optimizer=")
    _check_kind(optimizer, saved.entries)
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(f"{len(groups)} parameter groups were saved, {len(optimizer.param_groups)} are here")
    by_parameter = saved.states
    slots = [flat.layout.slots[piece.index] for flat, piece in optimizer.places()]
    _check_shapes(
        saved,
        {
            name: slot.shape
            for slot in slots
            for name in by_parameter.get(slot.name, {}).values()
            if name.startswith(STATE)
        },
    )


def read_objects(saved: Saved, model: nn.Module) -> dict[str, Any]:
    """What is small and pickled: extra, the modules' extra state, the groups' settings."""
    modules = extra_states(model)
    small = (name for name in saved.entries if name in modules or name == EXTRA or name.startswith((GROUPS, KIND)))
    return saved.read(dict.fromkeys(small))


def install_model(model: nn.Module, saved: Saved, objects: Mapping[str, Any]) -> None:
    """Give the model its values, a span of a shard at a time."""
    flats = sharded_of(model).flats
    saved.expect(
        _parameters_room(flat, low, high, torch.empty(high - low, device="meta"))
        for flat in flats
        for low, high in flat.spans()
    )
    for flat in flats:
        flat.forget()
        with flat.held():
            for low, high in flat.spans():
                with flat.opened_master(low, high, dirty=True) as master:
                    saved.read(_parameters_room(flat, low, high, master))
    install_buffers(model, saved)
    install_extra_states(model, objects)


def install_buffers(model: nn.Module, saved: Saved) -> None:
    """Give the model its persistent buffers."""
    for name, buffer in persistent_buffers(model).items():
        buffer.copy_(saved.read({name: torch.empty_like(buffer)})[name])


def install_extra_states(model: nn.Module, objects: Mapping[str, Any]) -> None:
    """Give the modules what their get_extra_state gave."""
    for name in extra_states(model):
        path = name.removeprefix(MODEL).removesuffix(EXTRA_STATE).removesuffix(".")
        model.get_submodule(path).set_extra_state(objects[name][0])


def install_optimizer(optimizer: PagedOptimizer, saved: Saved, objects: Mapping[str, Any]) -> None:
    """Give the optimizer its settings and its state, a span at a time."""

    def states_of(parts: Sequence[Part]) -> Iterator[list[dict[str, Any]]]:
        saved.expect(_state_room(saved, part) for part in parts)
        scratch = Scratch()
        for part in parts:
            found = saved.read(_with_memory(_state_room(saved, part), part, scratch))
            names = [saved.states.get(part.flat.layout.slots[place.index].name, {}) for place in part.places]
            yield [{key: _values(found[name]) for key, name in keys.items()} for keys in names]

    optimizer.take([objects[f"{GROUPS}{number}"] for number in range(len(optimizer.param_groups))], states_of)


def _shapes(model: nn.Module) -> dict[str, Sequence[int]]:
    """Of all tensors that the ranks' model entries make up together."""
    slots = [slot for flat in sharded_of(model).flats for slot in flat.layout.slots if slot.numel]
    shapes: dict[str, Sequence[int]] = {f"{MODEL}{slot.name}": slot.shape for slot in slots}
    return shapes | {name: buffer.shape for name, buffer in persistent_buffers(model).items()}


def _check_shapes(saved: Saved, shapes: Mapping[str, Sequence[int]]) -> None:
    for name, shape in shapes.items():
        found = saved.entries[name]
        was = list(found.size) if isinstance(found, TensorStorageMetadata) else "no tensor"
        if was != list(shape):
            raise ValueError(f"{saved.path} can't be loaded: {name} was saved as {was} and is {list(shape)} here")


def _check_kind(optimizer: PagedOptimizer, names: Iterable[str]) -> None:
    here, instead = kind_of(optimizer), "make an optimizer of that kind, or load without optimizer="
    kinds = [name.removeprefix(KIND) for name in names if name.startswith(KIND)]
    if kinds and kinds != [here]:
        raise ValueError(f"the optimizer state that was saved is {kinds[0]}'s, the optimizer here is {here}: {instead}")
    if not kinds:  # saved before kinds were; settings such as amsgrad add keys, so one may have more than the other
        theirs, ours = {key for found in state_names(names).values() for key in found}, _state_keys(optimizer)
        if not (theirs <= ours or ours <= theirs):
            was, has = (", ".join(sorted(keys)) for keys in (theirs, ours))
            raise ValueError(f"the optimizer state that was saved is {was}, {here} here has {has}: {instead}")


def _state_keys(optimizer: PagedOptimizer) -> set[str]:
    """What the optimizer keeps for a parameter once it has stepped."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    trial = copy.copy(optimizer.inner)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**optimizer.inner.param_groups[0], "params": [parameter]}]
    trial.step()
    return set(trial.state[parameter])


def _parameters_room(flat: Flat, low: int, high: int, master: Tensor) -> dict[str, BoxedPiece]:
    """The pieces of a span, in its values."""
    room = {}
    for piece in flat.pieces(low, high):
        slot = flat.layout.slots[piece.index]
        values = master[piece.shard_offset - low :][: piece.numel]
        room[f"{MODEL}{slot.name}"] = BoxedPiece(slot.shape, piece.start, values)
    return room


def _state_room(saved: Saved, part: Part) -> dict[str, Any]:
    """The state of a part's pieces by the names that it was saved as; what is large has no memory."""
    slots = [(part.flat.layout.slots[piece.index], piece) for piece in part.places]
    return {
        name: _piece_room(saved.entries[name], name, slot, piece)
        for slot, piece in slots
        for name in saved.states.get(slot.name, {}).values()
    }


def _piece_room(entry: STORAGE_TYPES, name: str, slot: Slot, piece: Piece) -> Any:
    """None for what was saved as an object."""
    if not isinstance(entry, TensorStorageMetadata):
        return None
    if name.startswith(SCALARS):
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    values = torch.empty(piece.numel, dtype=entry.properties.dtype, device="meta")
    return BoxedPiece(slot.shape, piece.start, values)


def _with_memory(room: dict[str, Any], part: Part, scratch: Scratch) -> dict[str, Any]:
    """Of its own where that is the state from then on."""
    boxed = {name: piece for name, piece in room.items() if isinstance(piece, BoxedPiece)}
    absent, device = [piece.values for piece in boxed.values()], part.flat.device
    if part.state_in_columns:
        memory = scratch.like(absent, device)
    else:
        memory = [torch.empty_like(values, device=device) for values in absent]
    return room | {name: piece.moved_to(values) for (name, piece), values in zip(boxed.items(), memory, strict=True)}


def _values(read: Any) -> Any:
    return read.values if isinstance(read, BoxedPiece) else read
