"""What the adapters to other engines share: a group, an optimizer, bytes in use."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

from ciuic_dist.comm.groups import backend, device
from ciuic_dist.config import OptimizerConfig
from ciuic_dist.engines.evaluates import Evaluates
from ciuic_dist.monitor.usage import TierUsage


class Adapter(Evaluates):
    """What an engine does with a model that keeps no account of its own."""

    def status(self) -> dict[str, TierUsage]:
        """Bytes of this rank: the GPU allocator's, or on the CPU the whole process's."""
        return {"device": device_usage()}

    def spilling(self) -> None:
        """Nothing that is counted here."""

    def close(self) -> None:
        """Nothing is held beyond the model."""


def need_group() -> None:
    """Make a group of this process alone where there is none: the other engines don't work without."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend(), store=store, rank=0, world_size=1)


def adamw(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Fused AdamW of torch over all parameters."""
    return AdamW(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def device_usage() -> TierUsage:
    """Bytes on this rank's device, now and at most."""
    if device().type != "cpu":
        allocated, most = torch.accelerator.memory_allocated, torch.accelerator.max_memory_allocated
        return TierUsage(allocated(device()), most(device()))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kibibytes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return TierUsage(used=int(kibibytes["VmRSS"]) * 1024, peak=int(kibibytes["VmHWM"]) * 1024)
