"""Optimizer state in 8 bits is plain PyTorch's, rounded after each step, bit for bit, wherever it is."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.compress.blockwise import BLOCK, SIGNED, UNSIGNED, Code, dequantize, quantize
from ciuic_dist.optim import parts
from ciuic_dist.optim.paged import PagedOptimizer
from ciuic_dist.sharding.layout import round_up
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import launch
from tests.dist.models import Stack
from tests.dist.spilling import assert_spilling_changes_nothing, below, every_tier
from tests.dist.test_spill import OPTIMIZERS
from tests.dist.training import OUR_ADAMW, Sample, Task, assert_equal, made, train_plain, train_sharded

EIGHT = partial(OUR_ADAMW, state_dtype="8bit")
WHOLE_BLOCKS = partial(Stack, 128, 256)
"""All parameters are whole blocks, but the last, which is followed by nothing."""


def rounded(values: Tensor, code: Code) -> Tensor:
    """What is left of ``values``, which begin with a block."""
    padded = torch.zeros(round_up(values.numel(), BLOCK))
    padded[: values.numel()] = values.flatten()
    codes, scales = torch.empty(padded.numel() // BLOCK, BLOCK, dtype=torch.uint8), torch.empty(padded.numel() // BLOCK)
    quantize(padded, code, codes, scales)
    dequantize(codes, scales, code, padded)
    return padded[: values.numel()].view(values.shape)


class Rounding(torch.optim.AdamW):
    """Rounds its state after each step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for state in self.state.values():
            state["exp_avg"].copy_(rounded(state["exp_avg"], SIGNED))
            state["exp_avg_sq"].copy_(rounded(state["exp_avg_sq"], UNSIGNED))


PLAIN = partial(Rounding, lr=1e-2, weight_decay=0.1, fused=True)
TASK = Task(WHOLE_BLOCKS, steps=5, plain=PLAIN, paged=EIGHT)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize(("world", "shared"), [(1, True), (2, True), (2, False)])
def test_every_stage_is_plain_pytorch_with_rounded_state(stage: int, world: int, shared: bool) -> None:
    assert_equal(launch(train_sharded, TASK, stage, world=world, shared=shared), train_plain(TASK, world))


def test_rounding_shows() -> None:
    exact = train_plain(replace(TASK, plain=Task().plain), 1)[0].losses
    coarse = train_plain(TASK, 1)[0].losses
    assert coarse != exact
    torch.testing.assert_close(coarse, exact, rtol=0.05, atol=0.0)


def train_in_small_spans(task: Task, stage: int) -> Any:
    before, parts._QUANTIZED_SPAN = parts._QUANTIZED_SPAN, 2 * BLOCK
    try:
        return train_sharded(task, stage)
    finally:
        parts._QUANTIZED_SPAN = before


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_large_shards_are_updated_in_spans(early: bool, precision: str | None) -> None:
    task = replace(TASK, paged=partial(EIGHT, in_backward=early), options={"mixed_precision": precision})
    assert_equal(launch(train_in_small_spans, task, 3), launch(train_sharded, task, 3))


ODD = partial(Stack, 48, 200)
"""Parameters that share blocks."""


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_value_does_not_depend_on_who_keeps_it(stage: int) -> None:
    task = Task(ODD, steps=5, paged=EIGHT, max_norm=0.05)
    assert_equal(launch(train_sharded, task, stage), launch(train_sharded, task, 0))


@every_tier
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_spilling_changes_nothing(tier: str, stage: int, precision: str | None, tmp_path: Path) -> None:
    task = Task(ODD, steps=4, paged=EIGHT, options={"mixed_precision": precision})
    assert_spilling_changes_nothing(task, below(tier, tmp_path), stage)


@pytest.mark.parametrize("sums", [(1,), (2,)])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_nor_does_spilling_with_the_optimizer_in_the_backward(
    sums: tuple[int, ...], precision: str | None, tmp_path: Path
) -> None:
    early = Task(
        ODD, steps=4, sums=sums, paged=partial(EIGHT, in_backward=True), options={"mixed_precision": precision}
    )
    late = launch(train_sharded, replace(early, paged=EIGHT), 3)
    spilled = assert_spilling_changes_nothing(early, below("nvme", tmp_path))
    assert [s.training.losses for s in spilled] == [t.losses for t in late]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_elementwise_optimizer(name: str, tmp_path: Path) -> None:
    cls, options = OPTIMIZERS[name]
    task = Task(ODD, paged=partial(cd.paged, cls, state_dtype="8bit", **options), steps=4)
    spilled = assert_spilling_changes_nothing(task, below("nvme", tmp_path))
    exact = launch(train_sharded, replace(task, paged=partial(cd.paged, cls, **options)), 3)
    for ours, theirs in zip(spilled, exact, strict=True):
        assert (ours.training.losses == theirs.losses) == (name in ("SGD", "ASGD"))  # no state, none that it reads
        torch.testing.assert_close(ours.training.losses, theirs.losses, rtol=0.05, atol=0.0)


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if "blocks" in name]},
        {"params": [p for name, p in named if "blocks" not in name], "lr": 3e-3, "weight_decay": 0.0},
    ]


def test_groups() -> None:
    task = replace(TASK, groups=two_groups)
    assert_equal(launch(train_sharded, task, 3), train_plain(task, 2))


def bytes_of_state(precision: str | None) -> tuple[int, int, int]:
    """Elements of this rank's shards; bytes of state for each element; bytes of all that the status counts."""
    model = cd.shard(Stack(256, 1024), mixed_precision=precision)
    optimizer = cd.AdamW(model.parameters(), state_dtype="8bit")
    train(model, optimizer, range(1))
    counters = sum(state["step"].nbytes for state in optimizer.inner.state.values())
    elements = sum(flat.layout.shard_numel for flat in sharded_of(model).flats)
    return elements, optimizer.state_bytes() - counters, cd.status(model).tiers["device"].used - counters


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = model(Sample(0, step, 0).inputs(4, 8)).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_bytes_a_parameter(precision: str | None) -> None:
    [(elements, state, used)] = launch(bytes_of_state, precision, world=1)
    assert state == elements * 2 * 33 // 32  # a byte for each of two moments, and fp32 for every 128
    weight_and_master, gradient = 4, 4  # in bf16 two bytes of either
    assert used == elements * (weight_and_master + gradient) + state  # 6.06 bytes a parameter but for the gradient
    for elements, state, _ in launch(bytes_of_state, precision, world=2):
        assert state == elements * 2 * 33 // 32


def pages_of_state(folder: Path, state_dtype: str | None) -> int:
    """How many there are."""
    model = cd.shard(Stack(256, 4096), memory=cd.Memory(device="40MB", nvme=f"{folder}:100MB"))
    train(model, cd.AdamW(model.parameters(), state_dtype=state_dtype, in_backward=True), range(3))
    spill = sharded_of(model).spill
    assert spill is not None
    return len(spill.states.pages)


def test_pages_hold_four_times_as_many_values(tmp_path: Path) -> None:
    # A flat takes whole pages of each, so flats are many pages here.
    [eight] = launch(pages_of_state, tmp_path, "8bit", world=1)
    [whole] = launch(pages_of_state, tmp_path, None, world=1)
    assert eight < 0.28 * whole


def start(path: Path, options: dict[str, Any], state_dtype: str | None) -> Any:
    """Two steps, a checkpoint, two steps more."""
    model = cd.shard(made(Task(make=ODD)), **options)
    optimizer = EIGHT(model.parameters(), state_dtype=state_dtype)
    train(model, optimizer, range(2))
    cd.save(path, model=model, optimizer=optimizer)
    kept = deepcopy(optimizer.state_dict())
    losses = train(model, optimizer, range(2, 4))
    return losses, cd.full_state_dict(model), kept


def go_on(path: Path, options: dict[str, Any], state_dtype: str | None) -> Any:
    """An optimizer that has stepped, a checkpoint, two steps; the state as loaded."""
    model = cd.shard(made(Task(make=ODD), seed=99), **options)
    optimizer: PagedOptimizer = EIGHT(model.parameters(), state_dtype=state_dtype)
    train(model, optimizer, range(7, 8))
    cd.load(path, model=model, optimizer=optimizer)
    kept = deepcopy(optimizer.state_dict())
    losses = train(model, optimizer, range(2, 4))
    return losses, cd.full_state_dict(model), kept


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("budget", [False, True])
def test_a_checkpoint_goes_on_bit_for_bit(precision: str | None, budget: bool, tmp_path: Path) -> None:
    options = {"mixed_precision": precision, "memory": below("nvme", tmp_path) if budget else None}
    saved = launch(start, tmp_path / "c", options, "8bit")
    torch.testing.assert_close(launch(go_on, tmp_path / "c", options, "8bit"), saved, rtol=0, atol=0)
    [alone] = launch(go_on, tmp_path / "c", {"mixed_precision": precision}, "8bit", world=1)
    torch.testing.assert_close(alone[1], saved[0][1], rtol=1e-6, atol=1e-6)
    three = launch(go_on, tmp_path / "c", {"mixed_precision": precision}, "8bit", world=3, shared=False)
    torch.testing.assert_close(three[0][1], saved[0][1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(None, "8bit"), ("8bit", None)])
def test_state_of_other_dtypes_is_taken(before: str | None, after: str | None, tmp_path: Path) -> None:
    saved = launch(start, tmp_path / "c", {}, before)
    for (losses, _, kept), (found, _, loaded) in zip(saved, launch(go_on, tmp_path / "c", {}, after), strict=True):
        torch.testing.assert_close(found, losses, rtol=0.01, atol=0.0)
        for number, state in kept["state"].items():
            off = loaded["state"][number]["exp_avg_sq"] - state["exp_avg_sq"]
            assert off.abs().amax() <= 0.02 * state["exp_avg_sq"].amax()
            assert bool(off.any()) == (after == "8bit")


def take_back() -> None:
    model = cd.shard(made(Task(make=ODD)))
    optimizer = EIGHT(model.parameters())
    train(model, optimizer, range(2))
    kept = optimizer.state_dict()
    train(model, optimizer, range(2, 4))
    optimizer.load_state_dict(kept)
    torch.testing.assert_close(optimizer.state_dict(), kept, rtol=0, atol=0)


def test_an_optimizer_takes_its_state_back() -> None:
    launch(take_back)
