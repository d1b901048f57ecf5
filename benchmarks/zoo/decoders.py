"""Decoders: dense attention, mixtures of experts, state spaces and linear attention."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.zoo.batches import language
from benchmarks.zoo.entry import Entry, Fields, hugging_face

LATENT: Fields = {  # multi-head latent attention
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
GROUPED: Fields = {"n_group": 2, "topk_group": 1, "n_shared_experts": 1}
MAMBA2: Fields = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
LINEAR: Fields = {  # gated delta rule
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

DENSE: Mapping[str, Fields] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 8},
    "MinistralForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "GemmaForCausalLM": {},
    "Gemma2ForCausalLM": {"sliding_window": 8},
    "Gemma3ForCausalLM": {"sliding_window": 8, "num_hidden_layers": 6},
    "VaultGemmaForCausalLM": {},
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": {},
    "GPT2LMHeadModel": {},
    "GPTBigCodeForCausalLM": {},
    "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "GPTNeoXForCausalLM": {},
    "GPTNeoXJapaneseForCausalLM": {},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "OpenAIGPTLMHeadModel": {},
    "CTRLLMHeadModel": {"dff": 48},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "BioGptForCausalLM": {},
    "BloomForCausalLM": {},
    "FalconForCausalLM": {},
    "MptForCausalLM": {},
    "PersimmonForCausalLM": {},
    "StableLmForCausalLM": {},
    "OlmoForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "Olmo3ForCausalLM": {"sliding_window": 8},
    "Starcoder2ForCausalLM": {},
    "CohereForCausalLM": {},
    "Cohere2ForCausalLM": {},
    "GraniteForCausalLM": {},
    "GlmForCausalLM": {},
    "Glm4ForCausalLM": {},
    "HeliumForCausalLM": {},
    "NemotronForCausalLM": {},
    "ApertusForCausalLM": {},
    "ArceeForCausalLM": {},
    "BitNetForCausalLM": {},
    "DiffLlamaForCausalLM": {},
    "DogeForCausalLM": {},
    "Ernie4_5ForCausalLM": {},
    "Exaone4ForCausalLM": {},
    "HunYuanDenseV1ForCausalLM": {},
    "NanoChatForCausalLM": {},
    "SeedOssForCausalLM": {},
    "SmolLM3ForCausalLM": {},
    "MiniCPM3ForCausalLM": LATENT,
    "YoutuForCausalLM": LATENT,
    "XGLMForCausalLM": {"attention_heads": 4, "num_layers": 2, "ffn_dim": 48, "d_model": 32},
    "ModernBertDecoderForCausalLM": {},
}

EXPERTS: Mapping[str, Fields] = {
    "DeepseekV2ForCausalLM": {**LATENT, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "DeepseekV3ForCausalLM": {**LATENT, **GROUPED, "first_k_dense_replace": 1},
    "Glm4MoeForCausalLM": {"first_k_dense_replace": 1},
    "Glm4MoeLiteForCausalLM": {**LATENT, "n_shared_experts": 1},
    "Dots1ForCausalLM": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "MixtralForCausalLM": {"output_router_logits": True},
    "Qwen2MoeForCausalLM": {},
    "Qwen3MoeForCausalLM": {"output_router_logits": True},
    "OlmoeForCausalLM": {},
    "FlexOlmoForCausalLM": {},
    "GptOssForCausalLM": {"sliding_window": 8},
    "GraniteMoeForCausalLM": {},
    "GraniteMoeSharedForCausalLM": {"shared_intermediate_size": 24},
    "HunYuanMoEV1ForCausalLM": {},
    "JetMoeForCausalLM": {},
    "Llama4ForCausalLM": {},
    "MiniMaxForCausalLM": {},
    "MiniMaxM2ForCausalLM": {},
    "PhimoeForCausalLM": {},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "Ernie4_5_MoeForCausalLM": {},
    "Lfm2MoeForCausalLM": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
}

RECURRENT: Mapping[str, Fields] = {
    "MambaForCausalLM": {"state_size": 8},
    "Mamba2ForCausalLM": {"num_heads": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "FalconMambaForCausalLM": {"state_size": 8},
    "JambaForCausalLM": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "BambaForCausalLM": {**MAMBA2, "attn_layer_indices": [1]},
    "GraniteMoeHybridForCausalLM": {**MAMBA2, "shared_intermediate_size": 24, "layer_types": ["mamba", "attention"]},
    "FalconH1ForCausalLM": {**MAMBA2, "mamba_d_ssm": 64},
    "NemotronHForCausalLM": {
        "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "n_groups": 2,
    },
    "Zamba2ForCausalLM": {
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "adapter_rank": 4,
    },
    "RwkvForCausalLM": {"attention_hidden_size": 32},
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "xLSTMForCausalLM": {},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "Qwen3NextForCausalLM": LINEAR,
    "Qwen3_5ForCausalLM": LINEAR,
}


def entries() -> list[Entry]:
    """Every decoder, on next-token prediction."""
    tables = {"decoder": DENSE, "experts": EXPERTS, "recurrent": RECURRENT}
    return [
        hugging_face(short(architecture), kind, architecture, language, fields)
        for kind, table in tables.items()
        for architecture, fields in table.items()
    ]


def short(architecture: str) -> str:
    """`LlamaForCausalLM` as `llama`."""
    body = re.split("For(?=[A-Z])", architecture)[0]
    return body.removesuffix("LMHeadModel").removesuffix("Model").lower()
