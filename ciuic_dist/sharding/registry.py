"""Finds what ``shard`` made, from the model or from one of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.sharded import Sharded


@dataclass(frozen=True, slots=True)
class Home:
    """Where a parameter lives."""

    sharded: Sharded
    flat: Flat
    index: int


_models: WeakKeyDictionary[nn.Module, Sharded] = WeakKeyDictionary()
_homes = WeakTensorKeyDictionary()


def register(sharded: Sharded) -> None:
    """Remember the model and its parameters for as long as they live."""
    _models[sharded.module] = sharded
    for flat in sharded.flats:
        for index, parameter in enumerate(flat.parameters):
            _homes[parameter] = Home(sharded, flat, index)


def sharded_of(model: nn.Module) -> Sharded:
    """What ``shard`` keeps for ``model``. Raises ValueError where it was not sharded."""
    found = _models.get(model)
    if found is None:
        raise ValueError(f"this {type(model).__name__} is not sharded: pass what cd.shard(model) returned")
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether ``model`` or a part of it went through ``shard``."""
    return any(module in _models for module in model.modules())


def home_of(parameter: Tensor) -> Home | None:
    """Where ``parameter`` lives, None if it isn't a sharded model's."""
    home: Home | None = _homes.get(parameter)
    return home
