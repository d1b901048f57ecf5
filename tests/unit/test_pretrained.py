"""Published weights: the values that transformers reads, in the parts that are asked for."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ciuic_dist.config import ConfigError, ModelConfig
from ciuic_dist.models import safetensors
from ciuic_dist.models.build import build
from ciuic_dist.models.conversion import Converted
from ciuic_dist.models.deferred import defer, materialize, recipe_of
from ciuic_dist.models.pretrained import WholePretrained, pretrained
from ciuic_dist.models.stored import Stored
from tests.unit.published import FAMILIES, assert_same, on_meta, reference, saved, tensors
from tests.unit.test_deferred import LiveBytes

SEED = 11


def built(folder: Path, **overrides: Any) -> nn.Module:
    """As ``model=hf model.path=folder model.pretrained=true`` builds it."""
    config = ModelConfig("hf", None, path=str(folder), pretrained=True, overrides=overrides)
    return build(config, vocab_size=None, seed=SEED)


def stored(model: nn.Module) -> Stored:
    recipe = recipe_of(model)
    assert isinstance(recipe, Stored)
    return recipe


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """All weights in one file, after ``change``."""
    values: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        values |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(change(values), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_the_one_that_transformers_reads(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = built(tmp_path)
    stored(model)
    assert_same(materialize(model), reference(tmp_path))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_model_that_the_user_built_on_meta_in_its_own_dtype(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    model = on_meta(tmp_path, torch.bfloat16)
    assert_same(materialize(defer(model, pretrained(model, str(tmp_path), SEED))), reference(tmp_path, torch.bfloat16))


def test_files_in_another_dtype(tmp_path: Path) -> None:
    saved("deepseek", tmp_path)
    rewrite(tmp_path, lambda values: {name: value.bfloat16() for name, value in values.items()})
    assert_same(materialize(built(tmp_path)), reference(tmp_path))


def test_parts_are_parts_of_the_whole(tmp_path: Path) -> None:
    saved("deepseek", tmp_path)
    model, whole = built(tmp_path), tensors(reference(tmp_path))
    drawn = torch.Generator().manual_seed(SEED)
    kinds = set()
    for name, tensor in model.named_parameters():
        source = stored(model).source(tensor)
        assert source is not None
        kinds.add(type(source))
        for _ in range(3):
            start, stop = sorted(torch.randint(tensor.numel() + 1, (2,), generator=drawn).tolist())
            parts = [torch.empty(0), *source.read(start, stop)]
            assert torch.equal(torch.cat(parts), whole[name].flatten()[start:stop]), name
    assert kinds == {safetensors.FileTensor, Converted}


def test_reading_part_of_fused_experts_takes_the_memory_of_one(tmp_path: Path) -> None:
    saved("deepseek", tmp_path)
    model = built(tmp_path)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    tensor = model.get_parameter(name)
    source = stored(model).source(tensor)
    assert source is not None
    one = tensor[0].nbytes
    with LiveBytes() as live:
        for _ in source.read(0, tensor.numel()):
            pass
    # Its halves as they come from the file, in the model's dtype, stacked, and put together; 8 experts would be 8.
    assert one <= live.peak <= 4 * one


def test_only_the_bytes_that_are_asked_for_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(1000.0)}, tmp_path / "a.safetensors")
    found = safetensors.tensors_of(tmp_path / "a.safetensors")["a"]
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate(found.offset + 4 * 500)
    assert torch.equal(torch.cat(list(found.read(100, 500))), torch.arange(100.0, 500.0))
    with pytest.raises(ConfigError, match="has become shorter"):
        list(found.read(499, 501))


def test_large_parts_come_in_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(safetensors, "CHUNK", 64)
    save_file({"a": torch.arange(100.0)}, tmp_path / "a.safetensors")
    parts = list(safetensors.tensors_of(tmp_path / "a.safetensors")["a"].read(3, 60))
    assert [len(part) for part in parts] == [16, 16, 16, 9]
    assert torch.equal(torch.cat(parts), torch.arange(3.0, 60.0))


def test_what_the_files_lack_is_drawn_as_in_a_random_model(tmp_path: Path) -> None:
    source = saved("qwen3", tmp_path)
    with pytest.warns(UserWarning, match=r"lacks 11 of the model's weights, which are drawn: model.layers.4.self_attn"):
        deeper = built(tmp_path, num_hidden_layers=5, layer_types=["full_attention"] * 5)
    values = tensors(materialize(deeper))
    random = build(
        ModelConfig("qwen3", overrides={"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}),
        vocab_size=None,
        seed=SEED,
    )
    expected = tensors(materialize(random)) | tensors(source)
    assert all(torch.equal(values[name], expected[name]) for name in values)


def test_what_the_model_has_no_place_for_is_said(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with pytest.warns(UserWarning, match=r"has 9 weights that this model has no place for: model.layers.3.input"):
        built(tmp_path, num_hidden_layers=3)


def test_frequencies_of_old_files_are_passed_over_in_silence(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    rewrite(tmp_path, lambda values: values | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    built(tmp_path)


def test_names_without_the_models_prefix(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    rewrite(tmp_path, lambda values: {name.removeprefix("transformer."): value for name, value in values.items()})
    assert_same(materialize(built(tmp_path)), reference(tmp_path))


def test_tied_weights_under_their_other_name_or_under_both(tmp_path: Path) -> None:
    saved("qwen3", tmp_path)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    rewrite(tmp_path, lambda values: values | {head: values[embedding].clone()})
    assert_same(materialize(built(tmp_path)), reference(tmp_path))
    rewrite(tmp_path, lambda values: {name: value for name, value in values.items() if name != embedding})
    model = materialize(built(tmp_path))
    assert_same(model, reference(tmp_path))
    assert model.get_parameter(head) is model.get_parameter(embedding)
    rewrite(tmp_path, lambda values: values | {embedding: values[head] + 1})
    with pytest.raises(ConfigError, match="with different values: set tie_word_embeddings to false"):
        built(tmp_path)


def pickle_weights(folder: Path) -> None:
    model = reference(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def test_files_of_another_kind_are_read_whole(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    pickle_weights(tmp_path)
    with pytest.warns(UserWarning, match=r"each rank reads all of .* \(0\.00 GB\) before .*: it has no safetensors"):
        model = built(tmp_path)
    assert isinstance(recipe_of(model), WholePretrained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        assert_same(materialize(model), reference(tmp_path))


def test_conversions_that_cannot_be_used_one_by_one_are_left_to_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import core_model_loading

    saved("deepseek", tmp_path)
    with monkeypatch.context() as another_version:
        another_version.delattr(core_model_loading, "rename_source_key")
        with pytest.warns(UserWarning, match="each rank reads all of .*: this version of transformers"):
            model = built(tmp_path)
    assert_same(materialize(model), reference(tmp_path))


def cut_short(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1)


def garble(folder: Path) -> None:
    min(folder.glob("*.safetensors")).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def lose_a_file(folder: Path) -> None:
    min(folder.glob("*.safetensors")).unlink()


def lose_all(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def quantize(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))


def use_another_dtype(folder: Path) -> None:
    rewrite(folder, lambda values: values | {"model.norm.weight": torch.ones(128, dtype=torch.float8_e4m3fn)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, "is cut short, or its header is wrong"),
        (garble, "can't be read as a safetensors file"),
        (lose_a_file, r"lacks model-00001-of-\d+.safetensors, which its model.safetensors.index.json names"),
        (lose_all, "holds no weights"),
        (quantize, "are quantized"),
        (use_another_dtype, "norm.weight in .* is of dtype F8_E4M3"),
    ],
)
def test_files_that_cannot_be_used_are_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    saved("llama", tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=message):
        built(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with pytest.raises(ConfigError, match=r"is of another model: .* is \[352, 128\] there and \[64, 128\] here"):
        built(tmp_path, intermediate_size=64)
    shutil.rmtree(tmp_path)
    saved("gpt2", tmp_path)
    model = build(ModelConfig("llama"), vocab_size=None, seed=SEED)
    with pytest.raises(ConfigError, match="no name in its files is one of this model"):
        pretrained(model, str(tmp_path), SEED)


def test_reading_holds_a_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(safetensors, "CHUNK", 1 << 10)
    saved("llama", tmp_path)
    model = built(tmp_path)
    with LiveBytes() as live:
        stored(model).replay(lambda *_: None)
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert largest <= live.peak <= largest + 8 * safetensors.CHUNK
