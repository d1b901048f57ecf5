"""One architecture of the zoo: how to build it small, and what to feed it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

Batch = dict[str, Tensor]
Fields = Mapping[str, Any]  # of a Hugging Face config

SEED = 20

# Sizes under every name that Hugging Face configs use for them; a config takes those that it has.
TINY: Mapping[str, int] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    # encoder-decoders
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 2,
    # images
    "image_size": 32,
    "patch_size": 8,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An architecture: `make` builds it (seeded, fp32, CPU, train mode), `batch` draws `rows` samples for it.

    What the model returns has the loss under "loss".
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    batch: Callable[[Generator, int], Batch]


def hugging_face(
    name: str, kind: str, architecture: str, batch: Callable[[Generator, int], Batch], fields: Fields
) -> Entry:
    """The entry for the transformers class called `architecture`, its config being TINY overridden by `fields`."""
    return Entry(name, kind, partial(build, architecture, fields), batch)


def build(architecture: str, fields: Fields) -> nn.Module:
    """Build the transformers class called `architecture` with random weights that depend on SEED only."""
    import transformers

    model_class = getattr(transformers, architecture)
    config_class = model_class.config_class
    config = config_class(**tiny(config_class) | dict(fields))
    calm(config)
    torch.manual_seed(SEED)
    model: nn.Module = model_class(config).float().train()
    return calm_modules(model)


def tiny(config_class: Any) -> dict[str, int]:
    """The sizes of TINY that a config has, under its own names."""
    names = {field.name for field in dataclasses.fields(config_class)}
    own = {key: config_class.attribute_map.get(key, key) for key in TINY}
    return {own[key]: value for key, value in TINY.items() if own[key] in names}


def calm(config: Any) -> None:
    """Switch off every source of randomness in the forward that a config, or a config inside it, names."""
    from transformers import PreTrainedConfig

    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            calm(value)
        elif isinstance(value, float) and any(word in key for word in ("drop", "jitter", "mask_time", "mask_feature")):
            setattr(config, key, 0.0)
        elif key in ("apply_spec_augment", "use_cache"):
            setattr(config, key, False)


def calm_modules(model: nn.Module) -> nn.Module:
    """Set what dropout a model hard-codes to 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d):
            module.p = 0.0
    return model
