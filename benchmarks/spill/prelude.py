"""A rank before it has a model: the engine's libraries loaded, the group joined, the text read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn

import ciuic_dist as cd
from benchmarks.measure.loop import Batch, batches
from benchmarks.measure.memory import pss
from benchmarks.measure.setting import Setting


def prelude(engine: str, setting: Setting) -> tuple[Iterator[Batch], int]:
    """Join as the engine's users do; the batches, and the bytes (PSS) of interpreter, libraries and data."""
    if engine == "ours":
        cd.init()
    elif engine != "plain":
        dist.init_process_group("gloo")
    if engine == "fsdp2":
        import torch.distributed.fsdp  # noqa: F401  # here: large, and the other engines go without
    if engine.startswith("deepspeed"):
        import_deepspeed()
        build_operators(engine)
    import transformers.models.llama.modeling_llama  # noqa: F401  # its first use would load it

    _train_a_little()
    stream = batches(setting, setting.world(engine))
    if dist.is_initialized():
        dist.barrier()  # so that all have loaded what they share
    used = pss()
    if dist.is_initialized():
        dist.barrier()
    return stream, used


def import_deepspeed() -> Any:
    """The package, told what it would otherwise find out."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a collective for inference that it would compile
    return deepspeed


_OPERATORS: Final = {"deepspeed-cpu": ("CPUAdamBuilder",), "deepspeed-nvme": ("CPUAdamBuilder", "AsyncIOBuilder")}


def build_operators(engine: str) -> None:
    """Load what the engine compiles; the first rank does so first. Raises RuntimeError where it can't."""
    from deepspeed.ops import op_builder

    if os.environ["RANK"] != "0":
        dist.barrier()
    for name in _OPERATORS[engine]:
        getattr(op_builder, name)().load(verbose=False)
    if os.environ["RANK"] == "0":
        dist.barrier()


def _train_a_little() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.RMSNorm(64))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(4, 64)).sum().backward()
    optimizer.step()


def main(engine: str, setting: str, result: str) -> None:
    """Write the bytes of this rank to `result`."""
    _, used = prelude(engine, Setting(**json.loads(setting)))
    Path(result).write_text(json.dumps({"baseline": used}), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
