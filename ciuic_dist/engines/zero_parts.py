"""Where DeepSpeed keeps each parameter's masters and state, by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from ciuic_dist.checkpoint.partitioned import Part
from ciuic_dist.comm.groups import rank


def parts_of(engine: Any, optimizer: Optimizer) -> Mapping[str, Part]:
    """By the names of the model's parameters; those without elements are left out, as everywhere."""
    named = {name: parameter for name, parameter in engine.module.named_parameters() if _numel(parameter)}
    owners = _owners(engine, optimizer, [parameter for parameter in named.values() if parameter.requires_grad])
    part = {0: _whole, 1: _gathered, 2: _gathered, 3: _Cut}[engine.zero_optimization_stage()]
    return {name: part(parameter, owners.get(parameter), optimizer) for name, parameter in named.items()}


@contextmanager
def filling(engine: Any, optimizer: Optimizer) -> Iterator[None]:
    """See checkpoint.partitioned.Filling."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        engine.optimizer.checkpoint_event_prologue()
        yield
        engine.optimizer.checkpoint_event_epilogue()  # gathers the small parameters that every rank keeps
    elif stage:
        _link(engine, optimizer)
        yield
        engine.optimizer.update_lp_params()
    else:
        yield


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _owners(engine: Any, optimizer: Optimizer, trained: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """What the optimizer updates for each parameter: its master, or a flat part of many."""
    stage = engine.zero_optimization_stage()
    if stage == 3:  # the optimizer has its groups only while it steps
        zero = engine.optimizer
        flats = zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)
        return {parameter: flat for parameters, flat in flats for parameter in parameters}
    updated = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    if stage:
        return dict.fromkeys(trained, updated[0])
    masters = [master for master in updated if master.requires_grad and master.numel()]
    return dict(zip(trained, masters, strict=True))


def _link(engine: Any, optimizer: Optimizer) -> None:
    """Let DeepSpeed find the state of each parameter, which it does for itself after the first step."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    trained = [p for p in engine.module.parameters() if p.requires_grad and p.numel()]
    (flat,) = optimizer.param_groups[0]["params"]
    lazy_init_hp_params_optimizer_state(trained, flat, optimizer.state)


class _Whole:
    """Stage 0, and what isn't trained: every rank has all."""

    on_all_ranks = True
    start = 0

    def __init__(self, parameter: nn.Parameter, owner: Tensor | None, optimizer: Optimizer) -> None:
        self.shape = parameter.shape
        self.numel = parameter.numel()
        self.owner = owner
        self._parameter = parameter
        self._optimizer = optimizer

    def get(self, key: str | None) -> Tensor:
        """See Part."""
        return self._kept(key).detach().float().reshape(-1)

    def set(self, values: Tensor, key: str | None) -> None:
        """See Part."""
        self._kept(key).copy_(values.view(self.shape))
        if key is None:
            self._parameter.copy_(values.view(self.shape))

    def _kept(self, key: str | None) -> Tensor:
        if self.owner is None:
            return self._parameter
        kept: Tensor = self.owner if key is None else self._optimizer.state[self.owner][key]
        return kept


class _Gathered:
    """Stages 1 and 2: flat parts of all parameters together. The model's own values follow when all is set."""

    on_all_ranks = True
    start = 0

    def __init__(self, parameter: nn.Parameter, owner: Tensor) -> None:
        self.shape = parameter.shape
        self.numel = parameter.numel()
        self.owner: Tensor | None = owner
        self._parameter = parameter

    def get(self, key: str | None) -> Tensor:
        """See Part."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameter
        found: Tensor
        found = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        return found.reshape(-1)

    def set(self, values: Tensor, key: str | None) -> None:
        """See Part."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if key is None:
            safe_set_full_fp32_param(self._parameter, values)
        else:
            safe_set_full_optimizer_state(self._parameter, values, key)


def _whole(parameter: nn.Parameter, owner: Tensor | None, optimizer: Optimizer) -> Part:
    return _Whole(parameter, owner, optimizer)


def _gathered(parameter: nn.Parameter, owner: Tensor | None, optimizer: Optimizer) -> Part:
    return _Whole(parameter, None, optimizer) if owner is None else _Gathered(parameter, owner)


class _Cut:
    """Stage 3: each rank has an equal part of each parameter, padded at the end."""

    on_all_ranks = False

    def __init__(self, parameter: Any, owner: Tensor | None, _: Optimizer) -> None:
        self.shape = torch.Size(parameter.ds_shape)
        self.start = rank() * parameter.partition_numel()
        self.numel = max(0, min(parameter.partition_numel(), parameter.ds_numel - self.start))
        self.owner = owner
        self._parameter = parameter

    def get(self, key: str | None) -> Tensor:
        """See Part."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        parameter = self._parameter
        padded: Tensor
        if self.owner is None:
            padded = parameter.ds_tensor.float()
        else:
            padded = safe_get_local_optimizer_state(parameter, key) if key else safe_get_local_fp32_param(parameter)
        return padded[: self.numel]

    def set(self, values: Tensor, key: str | None) -> None:
        """See Part. The whole variants of DeepSpeed 0.19 can't set a parameter that doesn't divide evenly."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        padded = pad(values, (0, self._parameter.partition_numel() - self.numel))
        if key is not None:
            safe_set_local_optimizer_state(self._parameter, padded, key)
            return
        if self.owner is not None:
            safe_set_local_fp32_param(self._parameter, padded)
        self._parameter.ds_tensor.data.copy_(padded)
