"""What a module can't do any more once it is sharded, as errors that say what to do instead."""

from __future__ import annotations

from functools import cache
from typing import Any, NoReturn

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ciuic_dist.sharding.registry import home_of


def guard(model: nn.Module, *, releases: bool) -> None:
    """Let ``model`` and its parts refuse what would read or write memory that isn't theirs alone.

    ``releases``: full forms have memory only while gathered.
    """
    for module in model.modules():
        module.register_load_state_dict_pre_hook(_refuse_loading)
        if releases:
            module.register_state_dict_pre_hook(_refuse_reading)
        vars(module)["__reduce_ex__"] = _refuse_copy  # what copy.deepcopy and pickle ask the instance for
    _watch_optimizers()


def _refuse_loading(*_: Any) -> NoReturn:
    raise RuntimeError(
        "load_state_dict on a sharded model would change this rank's values only: "
        "load before cd.shard, or use cd.load with what cd.save wrote"
    )


def _refuse_reading(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    if not keep_vars:  # the parameters themselves, not their values, are there to be had
        raise RuntimeError(
            "the parameters of this sharded model are in memory only while it computes: "
            "use cd.full_state_dict(model) or cd.save instead of state_dict()"
        )


def _refuse_copy(protocol: int) -> NoReturn:
    raise RuntimeError(
        "a sharded model can't be copied or pickled: copy it before cd.shard; cd.full_state_dict(model) and "
        "cd.save give its values"
    )


@cache
def _watch_optimizers() -> None:
    register_optimizer_step_pre_hook(_refuse_strangers)


def _refuse_strangers(optimizer: Optimizer, *_: Any) -> None:
    """Another optimizer would find no gradients, and do nothing without a word."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            home = home_of(parameter)
            if home is not None and id(optimizer) not in map(id, home.sharded.optimizers):
                kind = type(optimizer).__name__
                raise RuntimeError(
                    f"{kind} can't step the parameters of a sharded model: use cd.AdamW(model.parameters(), ...) or "
                    f"cd.paged(torch.optim.{kind}, model.parameters(), ...)"
                )
