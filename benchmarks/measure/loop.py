"""Training by the clock, in a rank's process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure.memory import PssSampler, Sample
from benchmarks.measure.setting import Setting
from ciuic_dist.config import DataConfig
from ciuic_dist.data.corpus import load

Batch = dict[str, Tensor]
Step = Callable[[Batch], Tensor]  # one optimizer step on this rank's sequences; their mean loss, 0-dim


@dataclass(frozen=True, slots=True)
class Steps:
    """`losses` has each step, also those of the warm-up and the one sampled for memory."""

    step_seconds: list[float]
    losses: list[float]
    memory: list[Sample]


def run(
    step: Step, setting: Setting, stream: Iterator[Batch], around: AbstractContextManager[object] | None = None
) -> Steps:
    """Warm-up, timed steps (within `around`), then one more in which memory is sampled, as that slows it down."""
    losses = [step(next(stream)) for _ in range(setting.warmup)]
    with around or nullcontext():
        times = [_now(setting)]
        for _ in range(setting.steps):
            losses.append(step(next(stream)))
            times.append(_now(setting, together=False))
    with _watched(setting) as memory:
        losses.append(step(next(stream)))
    return Steps([end - begin for begin, end in pairwise(times)], [loss.item() for loss in losses], memory)


def batches(setting: Setting, world: int) -> Iterator[Batch]:
    """This rank's part of one global batch after another: the same text whatever the world. It is read at once."""
    data = load(DataConfig(sequence_length=setting.sequence), seed=setting.seed).train
    rank = int(os.environ["RANK"])

    def batch(first: int) -> Batch:
        (one,) = data.micro_batches(
            first, global_batch=setting.batch, micro_batch=setting.batch // world, rank=rank, world=world
        )
        return {name: ids.to(setting.device) for name, ids in one.items()}

    return map(batch, count(step=setting.batch))


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
