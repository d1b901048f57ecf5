"""Bytes of tensors that code makes and keeps, against arithmetic."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ciuic_dist.memory.live import LiveBytes

KIB = 256  # fp32 elements


def test_a_storage_counts_once_and_until_it_is_freed() -> None:
    with LiveBytes() as live:
        made = torch.zeros(4 * KIB)
        view = made.view(2, -1)[:, 3:]
        view.add_(1).t().mul_(2)
        torch.ops.aten.lift_fresh.default(made)  # as torch.tensor does
        parts = [*made.chunk(2), *made.unbind()[:3]]
        assert live.now == 4 << 10
        del made, parts
        assert live.now == 4 << 10, "the view still holds it"
        del view
        assert live.now == 0
    assert live.peak == 4 << 10


def test_memory_used_again_counts_again() -> None:
    with LiveBytes() as live:
        for _ in range(100):
            value = torch.zeros(KIB)
            value = value + 1
            assert live.now == 1 << 10
    assert live.peak == 2 << 10
    del value
    assert live.now == 0, "freed after the mode has ended"


def test_what_was_there_before_does_not_count() -> None:
    before = torch.zeros(KIB)
    with LiveBytes() as live:
        before.add_(1)
        view = before[1:]
        assert (live.now, live.peak) == (0, 0)
        large = torch.frombuffer(bytearray(1 << 24), dtype=torch.uint8).untyped_storage()
        assert torch.empty(0).set_(large).untyped_storage() is large
        assert live.now == 0, "what set_ is given is no new storage"
        copies = torch._foreach_add([before, view], 1)
        assert live.now == sum(copy.nbytes for copy in copies)
        listed = torch.tensor([1.0, 2.0])
        assert live.now == sum(tensor.nbytes for tensor in [*copies, listed])


def test_ignored_storages_do_not_count() -> None:
    with LiveBytes() as live:
        ours, theirs = torch.zeros(KIB), torch.zeros(KIB)
        live.ignore(ours[3:])
        live.ignore(ours)
        ours.add_(1)
        assert live.now == 1 << 10
        del ours
        assert live.now == 1 << 10
        del theirs
        assert live.now == 0


def test_resized_storages_count_by_their_present_size() -> None:
    with LiveBytes() as live:
        value = torch.zeros(KIB)
        value.resize_(3 * KIB)
        assert live.now == live.peak == 3 << 10
        value.untyped_storage().resize_(0)
        assert live.now == 0
        value.untyped_storage().resize_(12 << 10)
        value.sum()
        assert live.peak == (12 << 10) + 4
        value.untyped_storage().resize_(0)
        del value
        assert live.now == 0


def test_a_graph_holds_what_it_saved() -> None:
    leaf = torch.zeros(KIB, requires_grad=True)
    with LiveBytes() as live:
        total = leaf.exp().sum()
        assert live.now == (1 << 10) + 4
        total.backward()
        assert live.now == (1 << 10) + 4, "the gradient in place of the exponential"
    assert live.peak == (2 << 10) + 4 + 4, "the exponential, the gradient, the sum and the sum's gradient"


def test_tensors_in_a_cycle_count_until_they_are_collected() -> None:
    with LiveBytes() as live:
        cycle: list[object] = [torch.zeros(KIB)]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert live.now == 0


def test_an_mlp_is_within_1_percent_of_arithmetic() -> None:
    rows, width, inner, out = 64, 32, 512, 16
    model = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, out))
    inputs = torch.randn(rows, width)
    hidden, result = 4 * rows * inner, 4 * rows * out
    with LiveBytes() as live:
        outputs = model(inputs)
        assert live.now == pytest.approx(hidden + result, rel=0.01)
        assert live.peak == pytest.approx(2 * hidden, rel=0.01)  # before and after the ReLU
        outputs.square().mean().backward()
        gradients = sum(parameter.nbytes for parameter in model.parameters())
        assert live.now == pytest.approx(gradients + result, rel=0.01)
        # The ReLU's result, its gradient and that of its input, beside the second layer's gradients.
        expected = 3 * hidden + sum(parameter.nbytes for parameter in model[2].parameters()) + result
        assert live.peak == pytest.approx(expected, rel=0.01)


def test_a_llama_holds_what_it_saved() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4, vocab_size=96
    )
    model = LlamaForCausalLM(config)
    batch = torch.randint(0, 96, (2, 32))
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers(), batch]}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def loss() -> Any:
        return model(input_ids=batch, labels=batch, use_cache=False).loss

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss().detach()
    expected = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    with LiveBytes() as live:
        total = loss()
        assert live.now == pytest.approx(expected, rel=0.01)
        total.backward()
        assert live.now == pytest.approx(sum(parameter.nbytes for parameter in model.parameters()), rel=0.01)
        model.zero_grad()
        del total
        assert live.now == 0
