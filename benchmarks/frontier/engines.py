"""The engines as benchmarks.engines and benchmarks.spill have them, in all their ways of saving memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

import ciuic_dist as cd
from benchmarks.engines.engines import ddp, deepspeed, plain
from benchmarks.frontier.cases import Case
from benchmarks.measure.loop import Batch, Step
from benchmarks.measure.setting import Setting
from benchmarks.spill.engines import adamw_in_backward, deepspeed_offloading, fsdp2
from ciuic_dist.planning.plan import Plan


def make(model: nn.Module, case: Case, setting: Setting) -> Step:
    """Spread ``model`` (it is deferred) as the case wants; one step of it."""
    return _MAKERS[case.engine](model, case, setting)


def _ours(model: nn.Module, case: Case, setting: Setting) -> Step:
    """Stage, budget and activations are the plan's, and so are the micro-batches."""
    plan = Plan.from_json(case.plan)
    model = cd.shard(model, memory=cd.Memory(device=case.device, nvme=f"{case.folder}:{plan.machine.nvme}"), plan=plan)
    optimizer = adamw_in_backward(model, setting)

    def step(batch: Batch) -> Tensor:
        total = torch.zeros(())
        for index in range(plan.accumulation):
            part = {name: ids.narrow(0, index * plan.micro_batch, plan.micro_batch) for name, ids in batch.items()}
            with nullcontext() if index == plan.accumulation - 1 else cd.no_sync(model):
                loss: Tensor = model(**part).loss / plan.accumulation
                loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def _plain(model: nn.Module, case: Case, setting: Setting) -> Step:
    return plain(model, setting)


def _ddp(model: nn.Module, case: Case, setting: Setting) -> Step:
    return ddp(model, setting)


def _fsdp2(model: nn.Module, case: Case, setting: Setting) -> Step:
    return fsdp2(model, setting, reshard_after_forward=case.engine != "fsdp2-no-reshard")


def _fsdp2_offloading(model: nn.Module, case: Case, setting: Setting) -> Step:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return fsdp2(model, setting, offload_policy=CPUOffloadPolicy(pin_memory=False))


def _deepspeed(model: nn.Module, case: Case, setting: Setting) -> Step:
    return deepspeed(model, replace(setting, stage=int(case.engine.removeprefix("deepspeed-"))))


_MAKERS: Final[dict[str, Callable[[nn.Module, Case, Setting], Step]]] = {
    "ours": _ours,
    "plain": _plain,
    "ddp": _ddp,
    "fsdp2": _fsdp2,
    "fsdp2-no-reshard": _fsdp2,
    "fsdp2-offload": _fsdp2_offloading,
    "deepspeed-1": _deepspeed,
    "deepspeed-2": _deepspeed,
    "deepspeed-3": _deepspeed,
    "deepspeed-cpu": deepspeed_offloading,
    "deepspeed-nvme": deepspeed_offloading,
}
