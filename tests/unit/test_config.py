"""Settings: strict keys, the right types, the nearest right key in every error; and the shipped defaults."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import nn

from ciuic_dist.compose import compose, help_text, options
from ciuic_dist.config import Config, ConfigError, ModelConfig, field_names, flatten, from_mapping, to_mapping
from ciuic_dist.engines.build import build
from ciuic_dist.train import main


def test_the_shipped_files_hold_the_defaults_of_the_dataclasses() -> None:
    assert compose(["+model=gpt2"]) == Config(model=ModelConfig(family="gpt2"))


def test_the_engine_file_is_named_by_its_engine() -> None:
    for name in options("engine"):
        assert compose(["+model=gpt2", f"engine={name}"]).engine.name == name


@pytest.mark.parametrize("override", ["train.steps=7", "+train.steps=7", "++train.steps=7"])
def test_a_setting_is_overridden_in_any_of_hydras_forms(override: str) -> None:
    assert compose(["+model=gpt2", override]).train.steps == 7


def test_every_kind_of_value_is_read() -> None:
    config = compose(
        [
            "model=gpt2",
            "engine=fsdp2",
            "engine.stage=2",
            "engine.timeout=5",
            "optimizer.lr=1e-3",
            "optimizer.betas=[0.8,0.9]",
            "train.clip=null",
            "train.compile=true",
            "data.path=/my/text",
            "model.overrides.n_layer=3",
        ]
    )
    assert (config.engine.name, config.engine.stage, config.engine.timeout) == ("fsdp2", 2, 5.0)
    assert (config.optimizer.lr, config.optimizer.betas) == (1e-3, (0.8, 0.9))
    assert (config.train.clip, config.train.compile) == (None, True)
    assert (config.data.path, config.model.overrides) == ("/my/text", {"n_layer": 3})


def test_a_config_survives_the_way_through_a_mapping() -> None:
    config = compose(["+model=gpt2", "engine=fsdp2"])
    named = dataclasses.replace(config, run=dataclasses.replace(config.run, name="gpt2-tiny-fsdp2"))
    assert from_mapping(to_mapping(config)) == named
    assert set(flatten(to_mapping(config))) | {"model.overrides"} == set(field_names())


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["+model=deepseek"], "deepseek-tiny"),
        (["+model=deepseek", "model.size=v3", "engine=deepspeed"], "deepseek-v3-deepspeed"),
        (["+model=hf", "model.path=someone/Some-1B"], "hf-Some-1B"),
        (["+model=hf", "model.model_type=mistral"], "hf-mistral"),
        (["+model=gpt2", "run.name=mine", "engine=fsdp2"], "mine"),
    ],
)
def test_a_run_is_named_after_model_and_engine(overrides: list[str], name: str) -> None:
    assert compose(overrides).run_name == name


def test_a_size_may_be_a_number_of_bytes() -> None:
    assert compose(["+model=gpt2", "memory.device=26289676"]).memory.device == "26289676"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.stepz=5", r"no setting train\.stepz: did you mean train\.steps\?"),
        ("+train.stepz=5", r"did you mean train\.steps\?"),
        ("lr=5", r"did you mean optimizer\.lr\?"),
        ("optimiser.lr=5", r"did you mean optimizer\.lr\?"),
        ("engine=fsdp", r"no engine fsdp: did you mean fsdp2\? There are deepspeed, fsdp2, paged"),
        ("model=lama", r"no model lama: did you mean llama\?"),
        ("train.steps=many", r"train\.steps must be of type int, not 'many'"),
        ("train.steps=1.5", r"train\.steps must be of type int, not 1\.5"),
        ("train.steps=true", r"train\.steps must be of type int, not True"),
        ("train.compile=1", r"train\.compile must be of type bool, not 1"),
        ("train.precision=fp16", r"train\.precision must be one of fp32, bf16, not 'fp16'"),
        ("optimizer.state_dtype=4bit", r"optimizer\.state_dtype must be one of fp32, 8bit, not '4bit'"),
        ("memory.activations=spill", r"memory\.activations must be one of auto, keep, offload, recompute, not 'spill'"),
        ("optimizer.betas=[0.9]", r"optimizer\.betas must be 2 values, not \[0\.9\]"),
        ("engine.stage=4", r"engine\.stage is a ZeRO stage, 0 to 3, not 4"),
        ("train.steps=0", r"train\.steps must be at least 1"),
        ("optimizer.lr=-1", r"optimizer\.lr must be positive"),
        ("train.steps=[1", r"cannot read .*train\.steps=\[1"),
        ("train.steps=${nothing}", r"cannot read .*nothing"),
        ("train=5", r"no setting train: did you mean train\."),
        ("train.steps", r"train\.steps is no setting: write section\.field=value"),
        ("--steps=5", r"--steps=5 is no setting"),
        ("~train.steps=5", r"~train\.steps=5 is no setting"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        compose(["+model=gpt2", override])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"model": {"family": "gpt2"}, "trian": {}}, r"no setting trian: did you mean train\?"),
        ({"model": {"family": "gpt2", "sice": "tiny"}}, r"no setting model\.sice: did you mean model\.size\?"),
        ({"model": {"size": "tiny"}}, r"model\.family must be given"),
        ({"model": 3}, r"model must hold settings, not 3"),
    ],
)
def test_a_mapping_is_checked_too(tree: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        from_mapping(tree)


@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed"])
def test_other_engines_have_no_8_bit_state(engine: str) -> None:
    config = compose(["+model=gpt2", f"engine={engine}", "optimizer.state_dtype=8bit"])
    with pytest.raises(ConfigError, match=f"engine={engine} keeps state in fp32"):
        build(config.engine, nn.Linear(1, 1), optimizer=config.optimizer, train=config.train)


def test_without_a_model_the_error_lists_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train.steps=5"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: no model: add +model=<name>; there are ")
    assert all(name in message for name in ("deepseek", "llama", "qwen3", "gpt2", "hf"))


def test_help_shows_every_setting_model_and_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == help_text() + "\n"
    for key in field_names():
        section, _, name = key.partition(".")
        part = help_text().partition(f"\n{section}:")[2].partition("\n\n")[0]
        assert f"\n  {name}: " in part, key
    assert all(name in help_text() for name in [*options("model"), *options("engine")])
