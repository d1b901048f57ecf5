"""What all engines of one benchmark train alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

ENGINES: Final = ("plain", "ours", "ddp", "fsdp2", "deepspeed")

# Sizes that only this benchmark wants: the size of ciuic_dist.models they start from, and the fields that differ.
_OWN_SIZES: Final[dict[tuple[str, str], tuple[str, dict[str, Any]]]] = {
    ("llama", "30m"): (
        "tiny",
        {
            "hidden_size": 512,
            "num_hidden_layers": 10,
            "intermediate_size": 1376,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        },
    ),
    ("llama", "13b"): (  # Llama 2
        "7b",
        {
            "hidden_size": 5120,
            "num_hidden_layers": 40,
            "intermediate_size": 13824,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
        },
    ),
    ("deepseek", "150m"): (
        "tiny",
        {
            "hidden_size": 768,
            "num_hidden_layers": 8,
            "intermediate_size": 2048,
            "moe_intermediate_size": 512,
            "n_routed_experts": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "q_lora_rank": 384,
            "kv_lora_rank": 128,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Model, batch and length of the training; `batch` is the sequences of a step over all ranks."""

    model: str
    size: str
    dtype: str
    device: str
    ranks: int
    hosts: str
    batch: int
    sequence: int
    steps: int
    warmup: int
    stage: int = 3
    seed: int = 0
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    checkpointing: bool = False
    layers: int | None = None  # in place of the size's own

    def world(self, engine: str) -> int:
        """Processes that `engine` runs in: plain PyTorch is one."""
        return 1 if engine == "plain" else self.ranks

    @property
    def tokens(self) -> int:
        """Tokens of a step over all ranks."""
        return self.batch * self.sequence

    def model_settings(self) -> tuple[str, str, dict[str, Any]]:
        """Family, size and field overrides, as ciuic_dist.models knows them."""
        size, overrides = _OWN_SIZES.get((self.model, self.size), (self.size, {}))
        layers = {} if self.layers is None else {"num_hidden_layers": self.layers}
        return self.model, size, overrides | layers
