"""ciuic_dist: train a model that is bigger than your GPUs, unmodified."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from ciuic_dist.checkpoint.files import load, save
from ciuic_dist.comm.groups import init
from ciuic_dist.memory.budget import Memory
from ciuic_dist.optim.adamw import AdamW
from ciuic_dist.optim.paged import paged
from ciuic_dist.plan import plan
from ciuic_dist.sharding.clip import clip_grad_norm_
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.shard import shard
from ciuic_dist.sharding.state import full_state_dict
from ciuic_dist.status import status

__all__ = [
    "AdamW",
    "Memory",
    "clip_grad_norm_",
    "full_state_dict",
    "init",
    "load",
    "no_sync",
    "paged",
    "plan",
    "save",
    "shard",
    "status",
]


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Backwards in this context are not the last of their step: their gradients only add up.

    Stages 0 and 1 reduce the sum with the next backward outside it; stages 2 and 3, where gradients are sharded,
    reduce each backward's.
    """
    return sharded_of(model).no_sync()
