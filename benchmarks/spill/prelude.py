"""A rank before it has a model: the engine's libraries loaded, the group joined, the text read."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import ciuic_dist as cd
from benchmarks.measure.loop import Batch, batches
from benchmarks.measure.memory import pss
from benchmarks.measure.setting import Setting
from benchmarks.spill.case import OPERATORS
from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import materialize


def prelude(engine: str, setting: Setting) -> tuple[Iterator[Batch], int]:
    """Join as the engine's users do; the batches, and the bytes (PSS) of interpreter, libraries and data."""
    if engine == "ours":
        cd.init()
    elif engine != "plain":
        dist.init_process_group("gloo")
    if engine.startswith("fsdp2"):
        import torch.distributed.fsdp  # noqa: F401  # here: large, and the other engines go without
    if engine.startswith("deepspeed"):
        import_deepspeed()
        build_operators(engine)

    _train_a_little()
    gc.collect()
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


def build_operators(engine: str) -> None:
    """Load what the engine compiles; the first rank does so first. Raises RuntimeError where it can't."""
    from deepspeed.ops import op_builder

    if os.environ["RANK"] != "0":
        dist.barrier()
    for name in OPERATORS.get(engine, ()):
        getattr(op_builder, name)().load(verbose=False)
    if os.environ["RANK"] == "0":
        dist.barrier()


def _train_a_little() -> None:
    """A model of a few parameters, once: what its code loads and keeps is no part of a model's memory."""
    model = with_checkpointing(build(ModelConfig("llama", "tiny"), vocab_size=None, seed=0)).train()
    optimizer = torch.optim.AdamW(materialize(model).parameters(), fused=True)
    ids = torch.zeros(1, 16, dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def with_checkpointing(model: Any) -> nn.Module:
    """The model, told to compute activations again in the backward."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    made: nn.Module = model
    return made


def main(engine: str, setting: str, result: str) -> None:
    """Write the bytes of this rank to `result`."""
    _, used = prelude(engine, Setting(**json.loads(setting)))
    Path(result).write_text(json.dumps({"baseline": used}), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
