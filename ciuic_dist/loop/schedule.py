"""What depends on the step or the sample alone: learning rate, seeds, micro-batches. Pure."""

from __future__ import annotations

import hashlib
import math

from ciuic_dist.config import ConfigError, TrainConfig
from ciuic_dist.data import accumulation


def lr_factor(step: int, train: TrainConfig) -> float:
    """Fraction of the full learning rate that ``step`` (from 0) uses: linear warm-up, then a cosine."""
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, train.steps - 1 - train.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return train.final_lr_fraction + (1 - train.final_lr_fraction) * cosine


def sample_seed(seed: int, sample: int) -> int:
    """Seed for the forward of the micro-batch that begins at global ``sample``.

    No generator state is carried from step to step, so a resume needs none to repeat dropout.
    The low 32 bits, all that torch's CPU generator takes, depend on every bit of both numbers.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed} {sample}".encode(), digest_size=8).digest()) >> 1


def micro_batch_of(train: TrainConfig, world: int) -> int:
    """Sequences of one rank in one forward. Raises ConfigError naming good values if they don't fit."""
    whole, rest = divmod(train.global_batch, world)
    micro_batch = train.micro_batch or (1 if rest else whole)
    try:
        accumulation(global_batch=train.global_batch, micro_batch=micro_batch, world=world)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return micro_batch
