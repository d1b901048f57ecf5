"""The named sizes: fields of the Hugging Face config by family and size, published shapes by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture of transformers and its sizes."""

    model_type: str
    sizes: dict[str, Fields]


_BYTES: Fields = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None}

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}

_DEEPSEEK: dict[str, Fields] = {
    # Learns bytes on two CPU cores. Query-key and value heads are equally wide (16 + 16 and 32)
    # because only then torch has a fused attention kernel for the CPU.
    "tiny": {
        **_BYTES,
        "hidden_size": 128,
        "intermediate_size": 352,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "max_position_embeddings": 2048,
    },
    # 15.7B: DeepSeek-V2-Lite's shape; its blocks route and score as V3's do.
    "v2-lite": {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 163840,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    # 671B without its multi-token prediction module; the rest are the architecture's defaults.
    "v3": {
        "max_position_embeddings": 163840,
        "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}


def _llama3(factor: float) -> Fields:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {"vocab_size": 128256, "max_position_embeddings": 131072, "rope_parameters": rope}


def _shape(hidden: int, layers: int, intermediate: int, heads: int, key_value_heads: int) -> Fields:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


_LLAMA: dict[str, Fields] = {
    "tiny": _BYTES | _shape(128, 4, 352, 4, 4),
    "150m": _BYTES | _shape(1024, 12, 2816, 16, 16),
    "1b": _llama3(32.0)  # Llama 3.2
    | _shape(2048, 16, 8192, 32, 8)
    | {"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    "7b": _shape(4096, 32, 11008, 32, 32)  # Llama 2
    | {"vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    "8b": _llama3(8.0) | _shape(4096, 32, 14336, 32, 8) | {"rms_norm_eps": 1e-5},  # Llama 3.1
}

_QWEN3_PUBLISHED = {
    "vocab_size": 151936,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
_TIED = {"tie_word_embeddings": True}

_QWEN3: dict[str, Fields] = {
    "tiny": _BYTES | _shape(128, 4, 352, 4, 2) | _TIED | {"head_dim": 32},
    "0.6b": _QWEN3_PUBLISHED | _shape(1024, 28, 3072, 16, 8) | _TIED,
    "1.7b": _QWEN3_PUBLISHED | _shape(2048, 28, 6144, 16, 8) | _TIED,
    "4b": _QWEN3_PUBLISHED | _shape(2560, 36, 9728, 32, 8) | _TIED,
    "8b": _QWEN3_PUBLISHED | _shape(4096, 36, 12288, 32, 8),
}

# Published with dropout 0.1; without it here, as every newer model.
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

_GPT2: dict[str, Fields] = {
    "tiny": {**_BYTES, "n_embd": 128, "n_layer": 4, "n_head": 4, **_NO_DROPOUT},
    "small": {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, **_NO_DROPOUT},
}

FAMILIES: dict[str, Family] = {
    "deepseek": Family("deepseek_v3", _DEEPSEEK),
    "llama": Family("llama", _LLAMA),
    "qwen3": Family("qwen3", _QWEN3),
    "gpt2": Family("gpt2", _GPT2),
}
