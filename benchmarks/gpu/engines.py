"""The engines, as their users set them up where one device's memory is short."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import torch
from torch import nn

import ciuic_dist as cd
from benchmarks.engines.engines import torch_adamw, training_loop
from benchmarks.gpu.trials import Trial
from benchmarks.measure.loop import Step
from benchmarks.spill.engines import adamw_in_backward, deepspeed_step
from ciuic_dist.comm.groups import device
from ciuic_dist.engines.adapter import need_group
from ciuic_dist.models.deferred import materialize


def make(model: nn.Module, trial: Trial) -> Step:
    """Spread ``model`` (it is deferred) as the trial wants; one step of it."""
    return _MAKERS[trial.engine](model, trial)


def _ours(model: nn.Module, trial: Trial) -> Step:
    setting = trial.setting
    memory = None if trial.device is None else cd.Memory(device=trial.device, host=trial.host)
    model = cd.shard(model, memory=memory, mixed_precision="bf16")
    return training_loop(model, adamw_in_backward(model, setting))


def _fsdp2(model: nn.Module, trial: Trial) -> Step:
    """Parameters, gradients and state on the host, a block at a time on the device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    need_group()
    _on_host(model)
    mesh = init_device_mesh(trial.setting.device, (1,))
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    offload = OffloadPolicy() if trial.setting.device == "cpu" else CPUOffloadPolicy()
    for module in [*model.get_submodule("model.layers").children(), model]:
        fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload)
    return training_loop(model, torch_adamw(model, trial.setting))


def _deepspeed(model: nn.Module, trial: Trial) -> Step:
    """ZeRO-Offload: masters, state and the update on the host."""
    os.environ["DS_ACCELERATOR"] = trial.setting.device
    need_group()
    setting = trial.setting
    settings = {
        "train_micro_batch_size_per_gpu": setting.batch,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "steps_per_print": 10**9,
    }
    return deepspeed_step(_on_host(model), setting, settings)


def _on_host(model: nn.Module) -> nn.Module:
    """Its values, which were drawn on the device, leave nothing behind there."""
    materialize(model).cpu()
    if device().type != "cpu":
        torch.accelerator.empty_cache()
    return model


_MAKERS: Final[dict[str, Callable[[nn.Module, Trial], Step]]] = {
    "ours": _ours,
    "fsdp2": _fsdp2,
    "deepspeed": _deepspeed,
}
