"""What autograd saves, in a lower tier until its backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ciuic_dist.memory.activations import ActivationStore
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.file import FileTier
from ciuic_dist.memory.live import LiveBytes
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.tier import Tier
from ciuic_dist.memory.transfer import Transfers
from tests.unit.memory.stored import PAGE, SLOTS, assert_empty, assert_equal, gradients, loss_of, reads, store_of


class Saves(torch.autograd.Function):
    """Gives what it was given in ``forward`` to ``check`` in backward."""

    @staticmethod
    def forward(ctx: Any, used: Tensor, check: Callable[[Any], None], *saved: Tensor) -> Tensor:
        ctx.save_for_backward(*saved)
        ctx.check, ctx.count = check, len(saved)
        return used.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.check(ctx.saved_tensors)
        return (gradients[0], None, *[None] * ctx.count)


@pytest.mark.parametrize("kind", ["ram", "file"])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("under_way", [1, 100_000, 1 << 30])
def test_values_are_those_without_a_store(
    kind: str, prefetch: bool, under_way: int, model: nn.ModuleList, transfers: Transfers, tmp_path: Path
) -> None:
    tier: Tier = RamTier("host", PAGE, SLOTS) if kind == "ram" else FileTier(tmp_path, PAGE, SLOTS)
    store = store_of(tier, transfers, model, under_way=under_way)
    loss_of(model, None).backward()
    expected = gradients(model)
    for _ in range(2):
        loss = loss_of(model, store)
        assert tier.pool.used > 100
        if prefetch:
            for index in reversed(range(len(model))):
                store.prefetch(index)
        loss.backward()
        assert_equal(gradients(model), expected)
        assert_empty(store, tier)
    tier.close()


def test_memory_is_let_go_when_it_is_written(model: nn.ModuleList, tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers, model)
    with LiveBytes() as live:
        loss = loss_of(model, store)
        store.settle()
        transfers.close()  # its threads hold nothing any more
        assert live.now == 2 * 32 * 64 * 4 + 4, "the last block's result, which was saved outside, and the loss"
    assert live.peak > 2 * live.now
    del loss


def test_what_was_fetched_stays_until_it_was_asked_for(
    model: nn.ModuleList, tier: RamTier, transfers: Transfers
) -> None:
    store = store_of(tier, transfers, model)
    loss = loss_of(model, store)
    store.settle()
    with LiveBytes() as live:
        loss.backward(retain_graph=True)
        transfers.close()
        assert live.now == sum(gradient.nbytes for gradient in gradients(model))


def test_a_storage_is_stored_once(tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers)
    leaf = torch.randn(3, 3 * PAGE // 4, requires_grad=True)  # 9 pages
    with store.saving(0):
        value = leaf * 1.0
        first = value[0] * value[1]
        second = value.t() * value.t()
    with store.saving(1):
        third = value.exp() * value
    assert tier.pool.used == 9 + 9, "value and its exponential"
    store.settle()
    (first.sum() + second.sum() + third.sum()).backward()
    assert reads(transfers) == 9 + 9
    found, leaf.grad = leaf.grad, None
    value = leaf * 1.0
    ((value[0] * value[1]).sum() + (value.t() * value.t()).sum() + (value.exp() * value).sum()).backward()
    assert found is not None
    assert leaf.grad is not None
    assert torch.equal(found, leaf.grad)
    del value, first, second, third
    assert_empty(store, tier)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_views_come_back_as_they_were(settled: bool, dtype: torch.dtype, tier: RamTier, transfers: Transfers) -> None:
    base = torch.randint(0, 2, (7, 11, 13)).to(dtype)
    views = [
        base, base.t() if base.dim() == 2 else base.transpose(0, 2), base[2:5, ::3, 4], base[:, :0], base[3, 5, 6],
        base[1:2].expand(4, 11, 13), base.flatten()[1::2], base.as_strided((3, 3), (1, 1), 7),
    ]  # fmt: skip
    expected = [(view.clone(), view.stride(), view.storage_offset()) for view in views]
    seen = []

    def check(saved: tuple[Tensor, ...]) -> None:
        for tensor, (value, stride, offset) in zip(saved, expected, strict=True):
            assert (tensor.stride(), tensor.storage_offset(), tensor.dtype) == (stride, offset, dtype)
            assert torch.equal(tensor, value)
        assert len({tensor.untyped_storage()._cdata for tensor in saved}) == 1
        seen.append(len(saved))

    store = store_of(tier, transfers)
    leaf = torch.zeros(1, requires_grad=True)
    with store.saving(0):
        result = Saves.apply(leaf, check, *views)  # type: ignore[no-untyped-call]
    assert tier.pool.used == -(-base.untyped_storage().nbytes() // PAGE)
    if settled:
        store.settle()
    result.backward()
    assert seen == [len(views)]
    del result
    assert_empty(store, tier)


@pytest.mark.parametrize("backwards", [[[0, 1]], [[0], [1]], [[1], [0]]])
def test_two_forwards_before_a_backward(
    backwards: list[list[int]], model: nn.ModuleList, tier: RamTier, transfers: Transfers
) -> None:
    store = store_of(tier, transfers, model, under_way=1)

    def run(store: ActivationStore | None) -> list[Tensor]:
        losses = [loss_of(model, store, seed) for seed in (1, 2)]
        for chosen in backwards:
            for index in reversed(range(len(model))):
                if store is not None:
                    store.prefetch(index)
            torch.stack([losses[index] for index in chosen]).sum().backward()
        return gradients(model)

    assert_equal(run(store), run(None))
    assert_empty(store, tier)


def test_a_retained_graph_is_read_again(model: nn.ModuleList, tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers, model)

    def run(store: ActivationStore | None) -> list[Tensor]:
        loss = loss_of(model, store)
        for retain in (True, True, False):
            loss.backward(retain_graph=retain)
        return gradients(model)

    assert_equal(run(store), run(None))
    assert_empty(store, tier)


def test_a_graph_of_gradients(tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers)

    def run(store: ActivationStore | None) -> Tensor:
        leaf = torch.linspace(-1, 1, PAGE).requires_grad_()
        if store is None:
            value = (leaf.sin() * leaf.exp()).sum()
            (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        else:
            with store.saving(0):
                value = (leaf.sin() * leaf.exp()).sum()
                (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    assert torch.equal(run(store), run(None))
    assert_empty(store, tier)


def test_nothing_is_stored_where_nothing_is_saved(model: nn.ModuleList, tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers, model)
    with torch.no_grad():
        loss_of(model, store)
    assert tier.pool.peak == 0


def test_small_tensors_and_those_to_keep_stay(tier: RamTier, transfers: Transfers) -> None:
    linear = nn.Linear(64, 64, bias=False)
    store = store_of(tier, transfers, linear, least_bytes=PAGE + 1)
    small, large = torch.randn(16, 64, requires_grad=True), torch.randn(17, 64, requires_grad=True)
    with store.saving(0):
        results = (
            linear(small).sum()
            + linear(large).sum()
            + large.mul(torch.ones(2 * PAGE // 4, dtype=torch.complex64)[:64]).abs().sum()
        )
    assert tier.pool.used == 2, "the larger input, without the weight and its transpose"
    results.backward()
    assert linear.weight.grad is not None
    assert torch.allclose(linear.weight.grad, (small.sum(0) + large.sum(0)).expand(64, 64))
    del results
    assert_empty(store, tier)


def test_a_checkpoint_inside_recomputes_and_its_input_is_stored(
    model: nn.ModuleList, tier: RamTier, transfers: Transfers
) -> None:
    store = store_of(tier, transfers, model)

    def run(store: ActivationStore | None) -> list[Tensor]:
        torch.manual_seed(0)
        value = torch.randn(2, 32, 64)
        for index, block in enumerate(model):
            if store is None:
                value = block(value)
            else:
                with store.saving(index):
                    value = checkpoint(block, value, use_reentrant=False)
        value.square().mean().backward()
        return gradients(model)

    assert_equal(run(store), run(None))
    inputs = 3 * 2 * 32 * 64 * 4 // PAGE
    assert inputs <= tier.pool.peak < 2 * inputs
    assert_empty(store, tier)


def test_saving_inside_a_checkpoint_stores(model: nn.ModuleList, tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers, model)
    runs = []

    def run(store: ActivationStore | None) -> list[Tensor]:
        torch.manual_seed(0)
        value = torch.randn(2, 32, 64)

        def stored(block: nn.Module, value: Tensor) -> Tensor:
            runs.append(block)
            assert store is not None
            with store.saving(0):
                value = block(value)
            return value.tanh()  # the checkpoint's own part

        for block in model:
            value = block(value).tanh() if store is None else checkpoint(stored, block, value, use_reentrant=False)
        value.square().mean().backward()
        return gradients(model)

    assert_equal(run(store), run(None))
    assert len(runs) == 2 * len(model)
    assert_empty(store, tier)


def test_a_graph_without_a_backward_gives_its_slots_back(
    model: nn.ModuleList, tier: RamTier, transfers: Transfers
) -> None:
    store = store_of(tier, transfers, model)
    for prefetch in (False, True):
        loss = loss_of(model, store)
        if prefetch:
            store.settle()
            store.prefetch(1)
        assert tier.pool.used
        del loss
        assert_empty(store, tier)


def test_a_tier_just_large_enough_serves_every_step(model: nn.ModuleList, tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers, model)
    loss_of(model, store)
    needed = tier.pool.peak
    tight = RamTier("host", PAGE, needed)
    store = store_of(tight, transfers, model)
    for _ in range(5):
        loss_of(model, store)
        loss_of(model, store).backward()
    assert tight.pool.peak == needed
    small = RamTier("host", PAGE, needed - 1)
    store = store_of(small, transfers, model)
    with pytest.raises(BudgetError, match=r"no tier has room for activations of unit 2, .* memory.host or memory.nvme"):
        loss_of(model, store)
    assert_empty(store, small)


def test_prefetch_brings_back_the_latest_forward(model: nn.ModuleList, tier: RamTier, transfers: Transfers) -> None:
    store = store_of(tier, transfers, model)
    older, newer = loss_of(model, store, 1), loss_of(model, store, 2)
    store.settle()
    used = tier.pool.used
    for index in range(len(model)):
        store.prefetch(index)
    store.settle()
    assert reads(transfers) == used / 2
    newer.backward(retain_graph=True)
    assert reads(transfers) == used / 2, "backward found everything"
    for index in range(len(model)):
        store.prefetch(index)
    store.settle()
    assert reads(transfers) == used
    older.backward()
    assert reads(transfers) == used
    del newer
    assert_empty(store, tier)
