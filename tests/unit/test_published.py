"""What is written is what transformers writes, and loads; one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build
from ciuic_dist.models.published import publish
from ciuic_dist.models.safetensors import tensors_of
from tests.unit.published import FAMILIES, assert_same, reference, saved
from tests.unit.test_deferred import LiveBytes

TOKENS = torch.arange(96).view(2, 48) * 37 % 256


@dataclass(frozen=True)
class Held:
    """A source that has its values in memory; a copy of them is read."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def read(self, start: int, stop: int) -> Iterator[Tensor]:
        yield self.values.flatten()[start:stop].clone()


def sources_of(model: nn.Module) -> dict[str, Held]:
    return {name: Held(value) for name, value in model.state_dict().items()}


def without_values(family: str) -> nn.Module:
    return build(ModelConfig(family), vocab_size=None, seed=0)


def contents(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_writes_the_same_and_loads_it_with_equal_logits(family: str, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    ours.mkdir()
    model = saved(family, theirs)
    written = publish(without_values(family), sources_of(model), ours, largest=100_000)
    expected, found = contents(theirs), contents(ours)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert written.tensors == len(found)
    assert written.files == len(list(ours.glob("*.safetensors"))) > 1
    assert written.nbytes == sum(value.nbytes for value in found.values())

    loaded = reference(ours)
    assert_same(loaded, model)
    assert loaded.config.use_cache
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model.eval()(TOKENS).logits)


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    model = saved("gpt2", tmp_path / "theirs")
    publish(without_values("gpt2"), sources_of(model), tmp_path)
    assert not list(tmp_path.glob("*index*"))
    assert_same(reference(tmp_path), model)


def test_files_are_no_larger_than_they_may_be_but_for_one_tensor(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "theirs")
    publish(without_values("llama"), sources_of(model), tmp_path, largest=150_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in contents(tmp_path).values())
    for file in tmp_path.glob("*.safetensors"):
        values = load_file(file)
        assert sum(value.nbytes for value in values.values()) <= 150_000 or len(values) == 1
        assert all(index["weight_map"][name] == file.name for name in values)


def test_the_dtype_is_that_of_the_values(tmp_path: Path) -> None:
    from transformers import AutoConfig

    model = saved("llama", tmp_path / "theirs").bfloat16()
    publish(without_values("llama"), sources_of(model), tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert_same(reference(tmp_path, torch.bfloat16), reference(tmp_path / "theirs", torch.bfloat16))


def test_writing_holds_a_tensor_at_a_time(tmp_path: Path) -> None:
    values = saved("deepseek", tmp_path / "theirs").state_dict()
    save_file(values, tmp_path / "values")
    largest = max(value.nbytes for value in values.values())
    assert sum(value.nbytes for value in values.values()) > 7 * largest
    with LiveBytes() as live:
        publish(without_values("deepseek"), tensors_of(tmp_path / "values"), tmp_path)
    assert largest < live.peak < 2.5 * largest  # the tensor, and the halves that it is cut into


def test_names_that_cannot_be_reverted_one_by_one_stay_the_models_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import core_model_loading

    model = saved("deepseek", tmp_path / "theirs")
    with monkeypatch.context() as another_version:
        another_version.delattr(core_model_loading, "revert_weight_conversion")
        publish(without_values("deepseek"), sources_of(model), tmp_path)
    assert contents(tmp_path).keys() == model.state_dict().keys()
    assert_same(reference(tmp_path), model)
