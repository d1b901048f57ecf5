"""The models whose steps are replayed, by name, profiled with fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ciuic_dist.planning.profile import Profile


@dataclass(frozen=True, slots=True)
class Case:
    """A transformers model, its blocks and a batch of it."""

    architecture: str
    blocks: tuple[str, ...]
    """Class names of the units."""
    fields: dict[str, Any]
    """Of its config."""
    batch: Callable[[int], dict[str, Tensor]]
    """Inputs of so many sequences or images."""
    length: int
    """Tokens of each."""


def _text(vocabulary: int, length: int) -> Callable[[int], dict[str, Tensor]]:
    def batch(count: int) -> dict[str, Tensor]:
        ids = torch.randint(vocabulary, (count, length))
        return {"input_ids": ids, "labels": ids}

    return batch


def _images(count: int) -> dict[str, Tensor]:
    pixels = torch.zeros(count, 3, 224, 224, dtype=torch.bfloat16)
    return {"pixel_values": pixels, "labels": torch.zeros(count, dtype=torch.int64)}


def _llama(hidden: int, layers: int, intermediate: int, heads: int) -> Case:
    fields = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
    }
    return Case("LlamaForCausalLM", ("LlamaDecoderLayer",), fields, _text(32000, 2048), 2048)


CASES = {
    "llama-7b": _llama(4096, 32, 11008, 32),
    "llama-13b": _llama(5120, 40, 13824, 40),
    "vit-h": Case(
        "ViTForImageClassification",
        ("ViTLayer",),
        {
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "intermediate_size": 5120,
            "patch_size": 14,
            "num_labels": 1000,
        },
        _images,
        256,
    ),
    "t5-11b": Case(
        "T5ForConditionalGeneration",
        ("T5Block",),
        {
            "d_model": 1024,
            "d_ff": 65536,
            "d_kv": 128,
            "num_heads": 128,
            "num_layers": 24,
            "dropout_rate": 0.0,
            "decoder_start_token_id": 0,
        },
        _text(32128, 512),
        512,
    ),
    "gpt2-xl": Case(
        "GPT2LMHeadModel",
        ("GPT2Block",),
        {"n_embd": 1600, "n_layer": 48, "n_head": 25, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        _text(50257, 1024),
        1024,
    ),
    "mixtral-8x7b": Case(
        "MixtralForCausalLM",
        ("MixtralDecoderLayer",),
        {"experts_implementation": "grouped_mm"},
        _text(32000, 2048),
        2048,
    ),
}
"""Published shapes: Llama 1, ViT-H/14, T5-11B, GPT-2 XL (tied), Mixtral 8x7B."""


def measure(name: str, tokens: int) -> Profile:
    """Profile a batch of about ``tokens`` tokens in bf16, without allocating the model."""
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.initialization import no_init_weights

    from ciuic_dist.estimate.tracer import profile

    case = CASES[name]
    architecture = getattr(transformers, case.architecture)
    config = architecture.config_class(**case.fields, use_cache=False)
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights():
        model: nn.Module = architecture._from_config(config, dtype=torch.bfloat16)
        model.tie_weights()  # type: ignore[operator]
        model.train()
        units = {n: m for n, m in model.named_modules() if type(m).__name__ in case.blocks}
        inputs = case.batch(max(tokens // case.length, 1))
        return profile(model, units, lambda: model(**inputs).loss)
