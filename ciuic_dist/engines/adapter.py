"""What the adapters to other engines share: a group, an optimizer, bytes in use, ``extra.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

from ciuic_dist.comm.groups import backend, device, rank
from ciuic_dist.config import OptimizerConfig
from ciuic_dist.engines.evaluates import Evaluates
from ciuic_dist.monitor.usage import TierUsage

_EXTRA = "extra.json"


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


def write_extra(folder: Path, extra: dict[str, Any]) -> None:
    """Rank 0 puts ``extra`` (anything JSON can hold) into a checkpoint's folder."""
    if rank() == 0:
        with (folder / _EXTRA).open("w", encoding="utf-8") as file:
            json.dump(extra, file)
            file.flush()
            os.fsync(file.fileno())


def read_extra(path: Path) -> dict[str, Any]:
    """The ``extra`` that ``write_extra`` put into ``path``."""
    extra: dict[str, Any] = json.loads((path / _EXTRA).read_text(encoding="utf-8"))
    return extra
