"""One rank: train under one engine, leave what was measured as JSON. Started by `launch`."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.engines.engines import MAKERS, Batch, join
from benchmarks.engines.memory import PssSampler, Sample, peak_rss
from benchmarks.engines.setting import Setting
from ciuic_dist.config import DataConfig, ModelConfig
from ciuic_dist.data.corpus import load
from ciuic_dist.models.build import build


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank measured; `losses` has each step, also those of the warm-up and the one sampled for memory."""

    parameters: int
    step_seconds: list[float]
    losses: list[float]
    memory: list[Sample]
    peak_rss: int
    accelerator: str


def train(engine: str, setting: Setting) -> Report:
    """Warm-up, timed steps, then one step more in which memory is sampled, as that slows it down."""
    if setting.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    join(engine, setting)
    family, size, overrides = setting.model_settings()
    model = build(ModelConfig(family, size, overrides=overrides), vocab_size=None, seed=setting.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.train()
    step = MAKERS[engine](model, setting)
    del model
    gc.collect()
    stream = _batches(setting, setting.world(engine))
    losses = [step(next(stream)) for _ in range(setting.warmup)]
    times = [_now(setting)]
    for _ in range(setting.steps):
        losses.append(step(next(stream)))
        times.append(_now(setting, together=False))
    with _watched(setting) as memory:
        losses.append(step(next(stream)))
    return Report(
        parameters=parameters,
        step_seconds=[end - begin for begin, end in pairwise(times)],
        losses=[loss.item() for loss in losses],
        memory=memory,
        peak_rss=peak_rss(),
        accelerator=torch.cuda.get_device_name() if setting.device == "cuda" else "",
    )


def _batches(setting: Setting, world: int) -> Iterator[Batch]:
    """This rank's part of one global batch after another: the same text whatever the world."""
    data = load(DataConfig(sequence_length=setting.sequence), seed=setting.seed).train
    rank, counter = int(os.environ["RANK"]), 0
    while True:
        (batch,) = data.micro_batches(
            counter, global_batch=setting.batch, micro_batch=setting.batch // world, rank=rank, world=world
        )
        yield {name: ids.to(setting.device) for name, ids in batch.items()}
        counter += setting.batch


def _now(setting: Setting, *, together: bool = True) -> float:
    if setting.device == "cuda":
        torch.cuda.synchronize()
    if together and dist.is_initialized():
        dist.barrier()
    return time.perf_counter()


@contextmanager
def _watched(setting: Setting) -> Iterator[list[Sample]]:
    """The memory of this rank: its PSS on the CPU, what the allocator gave out at most on a GPU."""
    samples: list[Sample] = []
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield samples
        torch.cuda.synchronize()
        samples.append((0.0, torch.cuda.max_memory_allocated()))
    else:
        with PssSampler() as sampler:
            yield samples
        samples += sampler.samples


def main(engine: str, setting: str, result: str) -> None:
    """Train as `setting` (JSON) says and write the report to `result`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    report = train(engine, Setting(**json.loads(setting)))
    Path(result).write_text(json.dumps(asdict(report)), encoding="utf-8")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
