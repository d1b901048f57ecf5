"""Moves a model's values into flats, one flat or one parameter at a time, and its parameters onto them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ciuic_dist.comm.groups import rank, world_size
from ciuic_dist.comm.together import together
from ciuic_dist.models.deferred import recipe_of
from ciuic_dist.models.stored import Stored, read_into
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.reset import ResetRecipe
from ciuic_dist.sharding.values import write_parameter, write_shard


def fill(model: nn.Module, flats: Sequence[Flat], device: torch.device) -> None:
    """Give every flat's master and shard their values, every parameter its place; buffers go to ``device``."""
    if any(parameter.is_meta for flat in flats for parameter in flat.parameters):
        _fill_from_recipe(model, flats, device)
    else:
        for flat in flats:
            _fill_from_rank_0(flat)
    _share_buffers(model, device)
    for flat in flats:
        _attach(model, flat)


def _fill_from_rank_0(flat: Flat) -> None:
    source = torch.zeros(flat.layout.numel, dtype=flat.master_dtype, device=flat.device)
    for index, parameter in enumerate(flat.parameters):
        if rank() == 0:
            flat.view(index, source).copy_(parameter.detach())
        parameter.data = parameter.data.new_empty(0)
    _broadcast(source)
    write_shard(flat, source[flat.shard_range])


def _fill_from_recipe(model: nn.Module, flats: Sequence[Flat], device: torch.device) -> None:
    recipe = recipe_of(model) or ResetRecipe(model)
    places = {id(p): (flat, index) for flat in flats for index, p in enumerate(flat.parameters)}
    buffers = [(module, name) for module in model.modules() for name in module._buffers]

    def emit(old: Tensor, real: Tensor) -> None:
        if id(old) in places:
            flat, index = places[id(old)]
            write_parameter(flat, index, real.detach())
        for module, name in buffers:
            if old.is_meta and module._buffers[name] is old:
                module._buffers[name] = real.to(device)

    with together():  # files may be there on one rank and not on another
        if isinstance(recipe, Stored):
            for flat in flats:
                _fill_from_storage(flat, recipe)
            recipe = recipe.without([parameter for flat in flats for parameter in flat.parameters])
        recipe.replay(emit)
    for flat in flats:
        for parameter in flat.parameters:
            if not parameter.is_meta:  # a model that is partly on meta keeps the values it has
                emit(parameter, _broadcast(parameter.detach().to(flat.device, copy=True).contiguous()))


def _fill_from_storage(flat: Flat, stored: Stored) -> None:
    """Read what this rank keeps of the flat, and nothing else, to where it stays."""
    with flat.held():
        for low, high in flat.spans():
            with flat.opened_master(low, high, dirty=True) as master:
                for piece in flat.pieces(low, high):
                    source = stored.source(flat.parameters[piece.index])
                    if source is not None:
                        read_into(master[piece.shard_offset - low :][: piece.numel], source, piece.start)


def _share_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                moved = module._buffers[name] = buffer.to(device)
                sent = _broadcast(moved.contiguous())
                if sent is not moved:  # strides stay: kernels give other bits for others
                    moved.copy_(sent)


def _broadcast(values: Tensor) -> Tensor:
    """Overwrite ``values``, contiguous, with rank 0's; returns them."""
    if world_size() > 1 and values.numel():
        dist.broadcast(values.view(-1).view(torch.uint8), 0)  # as bytes: Gloo doesn't know every dtype
    return values


def _attach(model: nn.Module, flat: Flat) -> None:
    """Make the model's parameters views of the full form."""
    storage = flat.full.untyped_storage()
    released = storage.nbytes() == 0
    if released:  # views can only be made of memory that is there
        storage.resize_(flat.full_bytes)
    replaced: dict[int, nn.Parameter] = {}
    for index, parameter in enumerate(flat.parameters):
        view = flat.view(index, flat.full)
        if parameter.is_meta:
            fresh = nn.Parameter(view.data, requires_grad=parameter.requires_grad)
            fresh.__dict__.update(parameter.__dict__)
            replaced[id(parameter)] = fresh
            flat.parameters[index] = fresh
        else:
            parameter.data = view
    if released:
        storage.resize_(0)
    if replaced:
        for module in model.modules():
            for name, owned in list(module._parameters.items()):
                if id(owned) in replaced:
                    setattr(module, name, replaced[id(owned)])
