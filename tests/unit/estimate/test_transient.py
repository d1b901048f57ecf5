"""What is counted ahead for a model's activations is what a real forward and backward takes, to the byte."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from ciuic_dist.config import ModelConfig
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.memory.live import LiveBytes
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import materialize
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.footprint import transient
from ciuic_dist.planning.training import Choice
from ciuic_dist.sharding.shard import exact_parameters

LENGTH = 128
COUNTS = (2, 8)


def expected(family: str, precision: str | None, way: Way) -> list[int]:
    """Bytes at the peak, of the tiny model on meta."""
    model = build(ModelConfig(family), vocab_size=None, seed=0)
    profile_of = profiles(model, causal_batch(LENGTH), precision=precision, most=max(COUNTS))
    found = map(profile_of, COUNTS)
    return [transient(profile, Choice(0, 1, 1, (way,) * profile.root)) for profile in found]


def measured(family: str, precision: str | None, *, checkpointing: bool) -> list[int]:
    """The same of the model with its values."""
    model: Any = materialize(build(ModelConfig(family), vocab_size=None, seed=0))
    exact = exact_parameters(model)
    for parameter in model.parameters():
        if precision == "bf16" and parameter not in exact:
            parameter.data = parameter.data.bfloat16()
        parameter.register_post_accumulate_grad_hook(_drop)
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    return [_peak(model, count) for count in COUNTS]


def _peak(model: nn.Module, count: int) -> int:
    ids = torch.arange(count * LENGTH).view(count, LENGTH) % 251
    with LiveBytes() as live, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of checkpointing
        model(input_ids=ids, labels=ids).loss.backward()
    peak: int = live.peak
    return peak


def _drop(parameter: nn.Parameter) -> None:
    parameter.grad = None


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "deepseek"])
def test_what_is_kept_is_known_to_the_byte(family: str, precision: str | None) -> None:
    assert measured(family, precision, checkpointing=False) == expected(family, precision, Way.KEEP)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_what_gpt2_keeps_is_known_within_a_thousandth(precision: str | None) -> None:
    """On meta, as on GPUs, the layer norms' means of bf16 are fp32; on the CPU they are bf16."""
    found = measured("gpt2", precision, checkpointing=False)
    assert found == pytest.approx(expected("gpt2", precision, Way.KEEP), rel=0.0015)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_computed_again_is_known_within_a_thousandth(family: str) -> None:
    assert measured(family, None, checkpointing=True) == pytest.approx(expected(family, None, Way.RECOMPUTE), rel=1e-3)
