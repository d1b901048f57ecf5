"""The engines, each in the few lines that its users write: wrap the model, make an AdamW, step.

In bf16 every engine keeps fp32 masters. Plain PyTorch and DDP compute under autocast, FSDP2 by its mixed precision
policy with gradients reduced in fp32, DeepSpeed by its bf16 mode, ours by `mixed_precision`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

import ciuic_dist as cd
from benchmarks.measure.loop import Batch, Step
from benchmarks.measure.setting import Setting
from ciuic_dist.config import EngineConfig, OptimizerConfig, TrainConfig
from ciuic_dist.engines.base import Engine
from ciuic_dist.engines.build import build
from ciuic_dist.models.deferred import materialize


def join(engine: str, setting: Setting) -> None:
    """Join the group that the launcher's variables describe, as the engine's users do."""
    if engine == "ours":
        cd.init()
    elif engine != "plain":
        dist.init_process_group("nccl" if setting.device == "cuda" else "gloo")


def plain(model: nn.Module, setting: Setting) -> Step:
    """One process."""
    materialize(model).to(setting.device)
    return training_loop(model, torch_adamw(model, setting), _autocast(setting))


def ddp(model: nn.Module, setting: Setting) -> Step:
    """PyTorch's DistributedDataParallel: everything on every rank."""
    replica = DistributedDataParallel(materialize(model).to(setting.device), gradient_as_bucket_view=True)
    return training_loop(replica, torch_adamw(replica, setting), _autocast(setting))


def fsdp2(model: nn.Module, setting: Setting) -> Step:
    """PyTorch's fully_shard over each block, then the root; its defaults reshard the blocks after forward."""
    return training_loop(fully_sharded(model, setting), torch_adamw(model, setting))


def fully_sharded(model: nn.Module, setting: Setting) -> nn.Module:
    """The model, under FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # large: the other engines go without

    materialize(model).to(setting.device)
    mesh = init_device_mesh(setting.device, (setting.ranks,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if setting.dtype == "bf16" else MixedPrecisionPolicy()
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def ours(model: nn.Module, setting: Setting) -> Step:
    """ciuic_dist; it makes the model's values shard by shard."""
    return training_loop(*sharded(model, setting))


def sharded(model: nn.Module, setting: Setting, memory: cd.Memory | None = None) -> tuple[nn.Module, cd.AdamW]:
    """The model under ciuic_dist, and its optimizer."""
    precision = "bf16" if setting.dtype == "bf16" else None
    model = cd.shard(model, stage=setting.stage, mixed_precision=precision, memory=memory)
    optimizer = cd.AdamW(
        model.parameters(), lr=setting.learning_rate, betas=setting.betas, weight_decay=setting.weight_decay
    )
    return model, optimizer


def deepspeed(model: nn.Module, setting: Setting) -> Step:
    """DeepSpeed's ZeRO at its defaults."""
    return engine_step(deepspeed_engine(model, setting))


def deepspeed_engine(model: nn.Module, setting: Setting) -> Engine:
    """DeepSpeed by this project's adapter, which knows its quirks."""
    optimizer = OptimizerConfig(lr=setting.learning_rate, betas=setting.betas, weight_decay=setting.weight_decay)
    train = TrainConfig(global_batch=setting.batch, precision="bf16" if setting.dtype == "bf16" else "fp32", clip=None)
    config = EngineConfig(name="deepspeed", stage=setting.stage)
    return build(config, model, optimizer=optimizer, train=train)


def engine_step(engine: Engine) -> Step:
    """Forward, backward, update."""

    def step(batch: Batch) -> Tensor:
        loss = engine.forward_backward(batch, accumulation=1, last=True)
        engine.step(None)
        return loss

    return step


MAKERS: Final[dict[str, Callable[[nn.Module, Setting], Step]]] = {
    "plain": plain,
    "ours": ours,
    "ddp": ddp,
    "fsdp2": fsdp2,
    "deepspeed": deepspeed,
}


def torch_adamw(model: nn.Module, setting: Setting) -> AdamW:
    """PyTorch's own, fused."""
    return AdamW(
        model.parameters(),
        lr=setting.learning_rate,
        betas=setting.betas,
        weight_decay=setting.weight_decay,
        fused=True,
    )


def _autocast(setting: Setting) -> AbstractContextManager[None]:
    return torch.autocast(setting.device, torch.bfloat16) if setting.dtype == "bf16" else nullcontext()


def training_loop(
    model: nn.Module, optimizer: Optimizer, precision: AbstractContextManager[None] | None = None
) -> Step:
    """Forward, backward, update."""
    precision = precision or nullcontext()

    def step(batch: Batch) -> Tensor:
        with precision:
            loss: Tensor = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
