"""Traces of many architectures, as they are: what is counted without values is what the model really computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.zoo.catalogue import select
from benchmarks.zoo.entry import Batch, Entry
from ciuic_dist.estimate.calls import Untraceable
from ciuic_dist.estimate.workload import traced
from ciuic_dist.planning.profile import Profile
from ciuic_dist.sharding.units import UnitSpec, find_units

DECODERS = "llama gemma2 gpt2 gptneox opt bloom falcon phi olmo2 minicpm3"
EXPERTS = "deepseekv3 mixtral qwen3moe gptoss llama4"
RECURRENT = "mamba mamba2 jamba recurrentgemma zamba2"
ENCODERS = "albert bert deberta electra fnet funnel modernbert xlnet"
ENCODER_DECODERS = "t5 prophetnet"
VISION = "vit swin convnext resnet mobilenetv2 segformer levit"
OTHERS = "whisper clip blip llava"
TRACED = f"{DECODERS} {EXPERTS} {RECURRENT} {ENCODERS} {ENCODER_DECODERS} {VISION} {OTHERS}".split()

EXPERTS_THAT_ARE_CHOSEN = r"NotImplementedError: .*torch\.nonzero\(\)"
"""Which experts any token goes to, that they be run one after another."""
FULL_MASK = r"RuntimeError: Tensor\.item\(\) cannot be called"
"""Whether a mask, made as floats, leaves nothing out; Longformer: which tokens all others see."""
NO_SHAPES = r"NotImplementedError: aten::_ctc_loss"
"""PyTorch has no shapes for this loss."""
UNTRACEABLE = {
    "dbrx": EXPERTS_THAT_ARE_CHOSEN,
    "nllbmoe": EXPERTS_THAT_ARE_CHOSEN,
    "switchtransformers": EXPERTS_THAT_ARE_CHOSEN,
    "bart": FULL_MASK,
    "marian": FULL_MASK,
    "squeezebert": FULL_MASK,
    "longformer": FULL_MASK,
    "wav2vec2": NO_SHAPES,
    "wavlm": NO_SHAPES,
}
NEVER_CALLED = {"funnel": 2}
"""Units that are lists of modules: the root computes with their weights."""
READ_ELSEWHERE = {
    "deberta": {("deberta.encoder.layer.0", "root"), ("deberta.encoder.layer.1", "root")},
    "funnel": {("root", "funnel.encoder.blocks.0"), ("root", "funnel.encoder.blocks.1")},
    "zamba2": {("model.layers.1", "root"), ("model.layers.3", "root")},
}
"""Units with weights of others that they read: DeBERTa's embeddings of positions, blocks that are used twice."""
SAMPLES = 2

_aten = torch.ops.aten


def entry_of(name: str) -> Entry:
    [entry] = select([name])
    return entry


def sample(entry: Entry) -> Batch:
    return entry.batch(Generator().manual_seed(0), 1)


def repeated(batch: Batch) -> Batch:
    """As often as it is traced."""
    return {
        name: value.repeat(SAMPLES, *[1] * (value.dim() - 1)) if value.dim() else value for name, value in batch.items()
    }


class NoFloats(TorchDispatchMode):
    """Nothing gives floating-point numbers that have values, but for single ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in pytree.tree_leaves(out):
            real = isinstance(made, Tensor) and not made.is_meta
            assert not (real and made.dim() and made.is_floating_point()), func
        return out


def attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], dropout: float = 0.0, causal: bool = False, **_: Any
) -> float:
    """Two products, as torch counts the kernels of GPUs; half of them where what comes later isn't looked at."""
    products = 2.0 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return products / 2 if causal else products


def attention_backward_flops(
    gradient: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    out: Sequence[int],
    sums: Sequence[int],
    dropout: float,
    causal: bool,
    **_: Any,
) -> float:
    """Five products: the scores again, and four gradients."""
    return 2.5 * attention_flops(query, key, value, causal=causal)


def grouped_flops(rows: Sequence[int], weights: Sequence[int], *_: Any, **__: Any) -> float:
    """Of rows that each go to one of several weights, or of gradients of these."""
    return 2.0 * prod(rows) * weights[-1]


COUNTED = {
    _aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    _aten._grouped_mm: grouped_flops,
}
"""What torch's counter doesn't know."""


@dataclass
class Computed:
    """What a forward and backward on real tensors did."""

    forward: float
    backward: float
    units: list[UnitSpec]
    called: set[str] = field(default_factory=set)
    learned: set[str] = field(default_factory=set)


def computed(model: nn.Module, batch: Batch) -> Computed:
    units = find_units(model)
    called: set[str] = set()
    for unit in units:
        unit.module.register_forward_pre_hook(lambda *_, name=unit.name: called.add(name))
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        loss = model(**batch)["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    learned = {unit.name for unit in units if any(p.grad is not None for p in unit.module.parameters())}
    return Computed(forward, counter.get_total_flops() - forward, units, called, learned & called)


def flops(profile: Profile, *, backward: bool) -> float:
    return sum(p.flops for p in profile.passes if p.backward is backward)


def names(profile: Profile, *, backward: bool) -> set[str]:
    """Of units with such a pass; the root's is empty."""
    found = {profile.units[p.unit].name for p in profile.passes if p.backward is backward}
    return {"" if name == "root" else name for name in found}


@pytest.mark.parametrize("name", TRACED)
def test_a_trace_counts_what_is_computed(name: str) -> None:
    entry = entry_of(name)
    model, batch = entry.make(), sample(entry)
    with NoFloats():  # type: ignore[no-untyped-call]
        found = traced(model, batch, SAMPLES)
    real = computed(model, repeated(batch))
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = {unit.name or "root": sum(p.numel() for p in unit.parameters.values()) for unit in real.units}
    assert {unit.name: unit.parameters for unit in found.units if unit.parameters} == held
    assert (names(found, backward=False), names(found, backward=True)) == (real.called, real.learned)
    assert len(held) - len(real.called) == NEVER_CALLED.get(name, 0)
    assert (flops(found, backward=False), flops(found, backward=True)) == (real.forward, real.backward)
    assert min(real.forward, real.backward) > 0
    read = {(found.units[p.unit].name, found.units[other].name) for p in found.passes for other in p.reads}
    assert read == READ_ELSEWHERE.get(name, set())


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_needs_values_is_refused_with_the_reason(name: str) -> None:
    entry = entry_of(name)
    with pytest.raises(Untraceable, match=UNTRACEABLE[name]):
        traced(entry.make(), sample(entry), SAMPLES)


def test_forty_architectures_are_traced() -> None:
    assert len(set(TRACED)) >= 40
