"""From a ModelConfig to a Hugging Face causal language model on the meta device."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ciuic_dist.config import ConfigError, ModelConfig
from ciuic_dist.hub import Repository
from ciuic_dist.models.deferred import defer, record
from ciuic_dist.models.pretrained import pretrained
from ciuic_dist.models.sizes import FAMILIES, Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def build(config: ModelConfig, *, vocab_size: int | None, seed: int) -> nn.Module:
    """The model of ``config`` on meta, fp32, with a recipe of its values (see models.deferred).

    Its random values are those of a plain single-process construction after
    ``torch.manual_seed(seed)``. ``vocab_size``: the tokenizer's, in place of the config's own.
    Raises ConfigError for a wrong family, size, model type, path or override; allocates no weights.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    hf = hf_config(config, vocab_size=vocab_size)

    def make() -> nn.Module:
        model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            hf, dtype=torch.float32
        )
        return model

    if type(hf) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"transformers has no causal language model of type {hf.model_type}")
    model = record(make, seed)
    if getattr(model, "loss_type", None) is None:  # transformers would take this one too, with a warning
        model.loss_type = "ForCausalLM"  # type: ignore[assignment]  # a plain attribute of the module
    if config.pretrained:
        assert config.path is not None
        defer(model, pretrained(model, config.path, seed))
    return model


def hf_config(config: ModelConfig, *, vocab_size: int | None) -> PretrainedConfig:
    """The Hugging Face config of ``config``, checked. Raises ConfigError."""
    if config.family == "hf":
        hf = _any_config(config)
    elif config.family in FAMILIES:
        hf = _sized_config(config, FAMILIES[config.family])
    else:
        raise ConfigError(_no_such("model family", config.family, [*FAMILIES, "hf"]))
    hf.use_cache = False
    if vocab_size is not None:
        _set_vocabulary(hf, vocab_size, pretrained=config.pretrained)
    return hf


def longest_sequence(config: ModelConfig) -> int | None:
    """Tokens that the model of ``config`` has positions for; None where it doesn't say. Raises ConfigError."""
    text = hf_config(config, vocab_size=None).get_text_config()
    longest: int | None = getattr(text, "max_position_embeddings", None)
    return longest


def _sized_config(config: ModelConfig, family: Family) -> PretrainedConfig:
    if config.path is not None or config.model_type is not None or config.pretrained:
        raise ConfigError("model.path, model.model_type and model.pretrained belong to the family hf: use +model=hf")
    if config.size not in family.sizes:
        raise ConfigError(_no_such(f"{config.family} size", str(config.size), family.sizes))
    return _make_config(family.model_type, family.sizes[config.size], config.overrides)


def _any_config(config: ModelConfig) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING

    if (config.path is None) == (config.model_type is None):
        raise ConfigError(
            "the family hf needs either model.path (a hub id or a folder) "
            "or model.model_type (such as mistral), not both"
        )
    if config.path is not None:
        return _published_config(config, config.path)
    if config.pretrained:
        raise ConfigError("model.pretrained needs model.path: a hub id or a folder with weights")
    if config.model_type not in CONFIG_MAPPING:
        raise ConfigError(_no_such("model type", str(config.model_type), CONFIG_MAPPING))
    return _make_config(str(config.model_type), {}, config.overrides)


def _published_config(config: ModelConfig, path: str) -> PretrainedConfig:
    from transformers import AutoConfig

    repository = Repository(path)
    if repository.config is None:
        raise ConfigError(f"model.path={path} has no config.json")
    try:
        published = AutoConfig.from_pretrained(path, revision=repository.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path={path} has a config.json that can't be used: {error}") from error
    fields = published.to_dict()
    fields.pop("model_type")
    fields.pop("quantization_config", None)
    layers = config.overrides.get("num_hidden_layers")
    if layers is not None and fields.get("layer_types"):
        fields["layer_types"] = fields["layer_types"][:layers]  # a list with one entry a layer
    return _make_config(published.model_type, fields, config.overrides)


def _make_config(model_type: str, fields: dict[str, Any], overrides: dict[str, Any]) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[model_type])}
    known |= set(CONFIG_MAPPING[model_type].attribute_map) | set(fields)
    for key in overrides:
        if key not in known:
            raise ConfigError(_no_such(f"field of the {model_type} config named", key, known))
    try:
        hf: PretrainedConfig = AutoConfig.for_model(model_type, **fields | overrides)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"the {model_type} config refuses these model.overrides: {error}") from error
    return hf


def _set_vocabulary(hf: PretrainedConfig, size: int, *, pretrained: bool) -> None:
    text = hf.get_text_config()
    if pretrained:
        if size > text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {size} tokens, the pretrained model knows {text.vocab_size}: "
                "set data.tokenizer to the model's own"
            )
        return
    text.vocab_size = size
    for name in _TOKEN_IDS:
        token = getattr(text, name, None)
        if isinstance(token, int) and token >= size:
            setattr(text, name, None)


def _no_such(kind: str, name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    listed = f" (there are {', '.join(known)})" if len(known) <= 20 else ""
    return f"there is no {kind} {name}{hint}{listed}"
