"""The engine that a config names."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ciuic_dist.comm.groups import world_size
from ciuic_dist.config import ConfigError, EngineConfig, MemoryConfig, OptimizerConfig, TrainConfig
from ciuic_dist.engines.base import Engine
from ciuic_dist.planning.plan import Plan
from ciuic_dist.sharding.units import find_units

_ENGINES: Final = {"paged": "PagedEngine", "fsdp2": "FSDP2Engine", "deepspeed": "DeepSpeedEngine"}


def build(
    config: EngineConfig,
    model: nn.Module,
    *,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    memory: MemoryConfig | None = None,
    plan: Plan | None = None,
) -> Engine:
    """Spread ``model`` (it may be deferred, on meta) over the ranks, within ``memory`` and as ``plan`` says.

    Raises ConfigError where the model or the engine cannot do what the settings ask.
    """
    config.check_group(world_size())
    options: dict[str, Any] = {}
    if plan is not None:
        if config.name != "paged":
            raise ConfigError(f"engine={config.name} follows no plans: leave run.plan out, or use engine=paged")
        options["plan"] = plan
    if memory is not None and memory != MemoryConfig():
        if config.name != "paged":
            raise ConfigError(f"engine={config.name} has no memory budgets: leave memory.* out, or use engine=paged")
        options["memory"] = memory
    if config.name != "paged" and optimizer.state_dtype != "fp32":
        raise ConfigError(f"engine={config.name} keeps state in fp32: leave optimizer.state_dtype, or use engine=paged")
    model.train()
    if train.activation_checkpointing:
        _checkpoint_activations(model)
    if train.compile:
        for unit in find_units(model):
            if unit.name:
                unit.module.forward = _compiled(unit.module.forward)
    make: Any = getattr(import_module(f"ciuic_dist.engines.{config.name}"), _ENGINES[config.name])
    engine: Engine = make(model, engine=config, optimizer=optimizer, train=train, **options)
    return engine


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A module's ``forward`` compiled; hooks, the engine's business, run as they are around it.

    Uncompiled where an engine watches the operators: the compiler, refusing once, would refuse ever after.
    """
    compiled = torch.compile(forward)

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        watched = _get_current_dispatch_mode() is not None
        return (forward if watched else compiled)(*args, **kwargs)

    return call


def _checkpoint_activations(model: nn.Module) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        name = type(model).__name__
        raise ConfigError(f"{name} cannot recompute its activations: set train.activation_checkpointing=false")
    older: Any = model.gradient_checkpointing_enable
    enable: Any = getattr(model, "activation_checkpointing_enable", older)
    enable({"use_reentrant": False})
