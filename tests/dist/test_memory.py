"""Peak memory of a training step is what arithmetic says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import meet, rank
from ciuic_dist.planning.flight import MAILBOX_SLOTS
from tests.dist.launch import fresh
from tests.dist.models import Stack

WORLD, WIDTH, INNER, ROWS = 2, 1024, 8192, 64
BLOCK = 4 * (2 * WIDTH + WIDTH * INNER + INNER + INNER * WIDTH + WIDTH)  # bytes of one block's parameters
ROOT = 4 * (8 * WIDTH + WIDTH + WIDTH * 5 + 5)
MODEL = 3 * BLOCK + ROOT
GRADIENT = 4 * WIDTH * INNER
"""The largest gradient, which lives for a moment beside its place in the mailbox."""


class Peak(threading.Thread):
    """The most memory this process has had, with shared pages counted in equal parts (PSS, bytes)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.001):
            self.most = max(self.most, now())

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.most


def now() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def train(model: nn.Module, optimizer: cd.AdamW, inputs: Tensor, steps: int) -> None:
    for _ in range(steps):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def grown(stage: int) -> tuple[int, int]:
    """Bytes by which this rank's peak in training is above what it had before the model; the peak it reports."""
    torch.manual_seed(0)
    model = cd.shard(Stack(), stage=stage)
    train(model, cd.AdamW(model.parameters()), torch.ones(ROWS, 8), steps=2)  # what is imported and allocated once
    before = now()
    model = cd.shard(Stack(WIDTH, INNER), stage=stage)
    optimizer, inputs = cd.AdamW(model.parameters()), torch.ones(ROWS, 8) * (1 + rank())
    train(model, optimizer, inputs, steps=1)
    meet()  # memory that one rank alone has touched yet counts as all its own
    peak = Peak()
    peak.start()
    train(model, optimizer, inputs, steps=2)
    return peak.stop() - before, cd.status(model).tiers["device"].peak


def activations() -> int:
    """Bytes that a forward saves for its backward, parameters apart, measured in plain PyTorch."""
    model = Stack(WIDTH, INNER)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.ones(ROWS, 8)).square().mean()
    loss.backward()
    return sum(saved.values())


@pytest.mark.alone
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_peak_of_a_host_is_within_3_percent_of_arithmetic(stage: int) -> None:
    mailbox = MODEL if stage == 1 else MAILBOX_SLOTS * BLOCK + ROOT
    state_and_gradient_shards = 3 * MODEL
    each = mailbox + GRADIENT + activations()
    expected = MODEL + state_and_gradient_shards + WORLD * each  # one full form for all ranks
    outcomes = fresh(WORLD).run(grown, stage)
    assert [outcome.error for outcome in outcomes] == [None] * WORLD
    measured = sum(outcome.value[0] for outcome in outcomes)
    assert measured == pytest.approx(expected, rel=0.03)
    reported = sum(outcome.value[1] for outcome in outcomes)
    assert reported == pytest.approx(MODEL + state_and_gradient_shards + WORLD * mailbox, rel=0.01)
