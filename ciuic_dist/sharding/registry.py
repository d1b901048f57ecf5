"""Finds what ``shard`` made, from the model or from one of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary, ref

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


# The model's hooks keep its Sharded alive; a strong reference to it from here would keep the model alive, too.
_models: WeakKeyDictionary[nn.Module, ref[Sharded]] = WeakKeyDictionary()
_places = WeakTensorKeyDictionary()


def register(sharded: Sharded) -> None:
    """Remember the model and its parameters for as long as they live."""
    known = _models[sharded.module] = ref(sharded)
    for position, flat in enumerate(sharded.flats):
        for index, parameter in enumerate(flat.parameters):
            _places[parameter] = known, position, index


def sharded_of(model: nn.Module) -> Sharded:
    """What ``shard`` keeps for ``model``. Raises ValueError where it was not sharded."""
    known = _models.get(model)
    found = None if known is None else known()
    if found is None:
        raise ValueError(f"this {type(model).__name__} is not sharded: pass what cd.shard(model) returned")
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether ``model`` went through ``shard``, or a part of it, or what it shares parameters with."""
    return model in _models or any(home_of(parameter) is not None for parameter in model.parameters())


def home_of(parameter: Tensor) -> Home | None:
    """Where ``parameter`` lives, None if it isn't a sharded model's."""
    known, position, index = _places.get(parameter, (None, 0, 0))
    sharded = None if known is None else known()
    return None if sharded is None else Home(sharded, sharded.flats[position], index)
