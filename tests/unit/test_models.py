"""Models by name: their values, their published shapes, and what a wrong name says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ciuic_dist.compose import compose, options
from ciuic_dist.config import ConfigError, ModelConfig
from ciuic_dist.models.build import build, hf_config
from ciuic_dist.models.deferred import distinct_tensors, materialize
from ciuic_dist.models.sizes import FAMILIES

SEED = 11
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def plain(config: ModelConfig, vocab_size: int | None = None) -> nn.Module:
    """What anybody would write: seed, then construct on the CPU."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            hf_config(config, vocab_size=vocab_size), dtype=torch.float32
        )
    return model


def assert_same_values(model: nn.Module, expected: nn.Module) -> None:
    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    assert names == [name for name, _ in [*expected.named_parameters(), *expected.named_buffers()]]
    for name, left, right in zip(names, distinct_tensors(model), distinct_tensors(expected), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_has_the_values_of_a_plain_construction(family: str) -> None:
    config = ModelConfig(family)
    model = build(config, vocab_size=None, seed=SEED)
    assert all(tensor.is_meta for tensor in distinct_tensors(model))
    assert_same_values(materialize(model), plain(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_repeats_a_step_exactly(family: str) -> None:
    model = materialize(build(ModelConfig(family), vocab_size=None, seed=SEED))
    tokens = torch.arange(96).view(2, 48) * 37 % 256
    losses, norms = set(), set()
    for _ in range(2):
        model.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        losses.add(loss.item())
        norms.add(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item())
    assert len(losses) == len(norms) == 1
    assert 5.4 < losses.pop() < 5.7  # ln 256 = 5.55: nothing is known yet


def test_tied_weights_stay_tied() -> None:
    model = materialize(build(ModelConfig("gpt2"), vocab_size=None, seed=SEED))
    assert model.get_parameter("lm_head.weight") is model.get_parameter("transformer.wte.weight")


@pytest.mark.parametrize(
    ("family", "size", "millions"),
    [
        ("deepseek", "tiny", 1.4),
        ("deepseek", "v2-lite", 15706.5),
        ("deepseek", "v3", 671026.4),
        ("llama", "150m", 154.7),
        ("llama", "1b", 1235.8),
        ("llama", "7b", 6738.4),
        ("llama", "8b", 8030.3),
        ("qwen3", "0.6b", 596.0),
        ("qwen3", "8b", 8190.7),
        ("gpt2", "small", 124.4),
    ],
)
def test_a_named_size_has_its_published_parameters_and_allocates_none(family: str, size: str, millions: float) -> None:
    model = build(ModelConfig(family, size), vocab_size=None, seed=SEED)
    assert all(tensor.is_meta for tensor in distinct_tensors(model))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_models_are_fp32_with_fused_attention_and_no_cache() -> None:
    model = build(ModelConfig("deepseek"), vocab_size=None, seed=SEED)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    config: Any = model.config
    assert config._attn_implementation == "sdpa"
    assert not config.use_cache


def test_the_tokenizers_vocabulary_replaces_the_models_own() -> None:
    config = ModelConfig("hf", None, model_type="gpt2", overrides={"n_embd": 8, "n_layer": 1, "n_head": 2})
    model = build(config, vocab_size=300, seed=SEED)
    assert model.get_parameter("lm_head.weight").shape == (300, 8)
    assert hf_config(config, vocab_size=300).eos_token_id is None  # it was 50256
    assert_same_values(materialize(model), plain(config, 300))


def test_any_model_type_with_overrides() -> None:
    config = ModelConfig("hf", None, model_type="mistral", overrides=SMALL | {"num_key_value_heads": 1})
    model = build(config, vocab_size=64, seed=SEED)
    assert model.get_parameter("model.layers.0.self_attn.k_proj.weight").shape == (16, 32)
    assert_same_values(materialize(model), plain(config, 64))


def test_a_folder_gives_its_shape_and_on_demand_its_weights(tmp_path: Path) -> None:
    source = plain(ModelConfig("qwen3", overrides={"num_hidden_layers": 1}))
    source.save_pretrained(tmp_path)  # type: ignore[operator]
    config = ModelConfig("hf", None, path=str(tmp_path))
    with torch.no_grad():
        source.get_parameter("lm_head.weight").add_(1.0)
    drawn = materialize(build(config, vocab_size=None, seed=SEED))
    assert not torch.equal(drawn.get_parameter("lm_head.weight"), source.get_parameter("lm_head.weight"))
    assert_same_values(drawn, plain(config))

    source.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = build(replace(config, pretrained=True), vocab_size=200, seed=SEED)
    assert all(tensor.is_meta for tensor in distinct_tensors(loaded))
    assert_same_values(materialize(loaded), source)
    assert loaded.get_parameter("lm_head.weight") is loaded.get_parameter("model.embed_tokens.weight")

    deeper = replace(config, pretrained=True, overrides={"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2})
    with pytest.warns(UserWarning, match="lacks 11 of the model's weights"):
        first, second = (materialize(build(deeper, vocab_size=None, seed=SEED)) for _ in range(2))
    assert torch.equal(first.get_parameter("lm_head.weight"), source.get_parameter("lm_head.weight"))
    assert_same_values(first, second)  # the layer that the files lack too

    with pytest.raises(ConfigError, match="tokenizer has 257 tokens, the pretrained model knows 256"):
        build(replace(config, pretrained=True), vocab_size=257, seed=SEED)


def test_fewer_layers_of_a_published_shape(tmp_path: Path) -> None:
    hf_config(ModelConfig("qwen3"), vocab_size=None).save_pretrained(tmp_path)
    config = ModelConfig("hf", None, path=str(tmp_path), overrides={"num_hidden_layers": 2})
    assert hf_config(config, vocab_size=None).num_hidden_layers == 2


def test_quantized_or_missing_weights_are_refused(tmp_path: Path) -> None:
    published = hf_config(ModelConfig("llama"), vocab_size=None)
    published.quantization_config = {"quant_method": "fp8"}
    published.save_pretrained(tmp_path)
    config = ModelConfig("hf", None, path=str(tmp_path))
    build(config, vocab_size=None, seed=SEED)
    with pytest.raises(ConfigError, match="are quantized"):
        build(replace(config, pretrained=True), vocab_size=None, seed=SEED)
    del published.quantization_config
    published.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds no weights"):
        build(replace(config, pretrained=True), vocab_size=None, seed=SEED)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("deepsek"), r"no model family deepsek; did you mean deepseek\? \(there are deepseek, gpt2"),
        (ModelConfig("llama", "13b"), r"no llama size 13b.*there are 150m, 1b, 7b, 8b, tiny"),
        (ModelConfig("llama", None), "no llama size None"),
        (ModelConfig("llama", overrides={"hiden_size": 8}), r"config named hiden_size; did you mean hidden_size\?"),
        (ModelConfig("llama", overrides={"hidden_size": "wide"}), r"refuses .*hidden_size"),
        (ModelConfig("llama", pretrained=True), r"belong to the family hf: use \+model=hf"),
        (ModelConfig("hf"), r"either model.path .* or model.model_type"),
        (ModelConfig("hf", path="/a", model_type="llama"), "not both"),
        (ModelConfig("hf", model_type="mistrall"), r"no model type mistrall; did you mean mistral\?"),
        (ModelConfig("hf", model_type="vit"), "no causal language model of type vit"),
        (ModelConfig("hf", model_type="gpt2", pretrained=True), "pretrained needs model.path"),
        (ModelConfig("hf", path="/not/here"), "/not/here is neither a folder"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_write(config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build(config, vocab_size=None, seed=SEED)


@pytest.mark.parametrize("name", [*FAMILIES, "hf"])
def test_the_command_line_knows_every_family(name: str) -> None:
    assert compose([f"+model={name}"]).model.family == name
    assert name in options("model")


def test_a_size_is_chosen_on_the_command_line() -> None:
    assert compose(["+model=deepseek", "model.size=v2-lite"]).model == ModelConfig("deepseek", "v2-lite")
