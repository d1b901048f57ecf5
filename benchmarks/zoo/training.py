"""The training that every engine has to reproduce: three steps in plain PyTorch, one process taking all ranks' rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from benchmarks.zoo.entry import Batch, Entry

STEPS = 3
ROWS = 2  # samples per rank and step
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1


@dataclass(frozen=True, slots=True)
class Training:
    """What a training left: losses[step][rank], and the parameters by their original names."""

    losses: list[list[float]]
    parameters: dict[str, Tensor]


def inputs(entry: Entry, step: int, rank: int) -> Batch:
    """The micro-batch of one rank; the global generator is seeded too, for models that draw in their forward."""
    seed = 1000 * step + rank
    batch = entry.batch(Generator().manual_seed(seed), ROWS)
    torch.manual_seed(seed)
    return batch


def reference(entry: Entry, world: int) -> Training:
    """Train in this process alone; ValueError if the training is no test: not finite, or nothing moved."""
    model = entry.make()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    losses: list[list[float]] = []
    for step in range(STEPS):
        losses.append([])
        for rank in range(world):
            loss = model(**inputs(entry, step, rank))["loss"]
            (loss / world).backward()
            losses[-1].append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    end = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if not all(math.isfinite(loss) for row in losses for loss in row):
        raise ValueError(f"{entry.name} is no test: its losses are {losses}")
    if all(torch.equal(end[name], start[name]) for name in end):
        raise ValueError(f"{entry.name} is no test: no parameter moved")
    return Training(losses, end)
