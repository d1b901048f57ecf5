"""The cases, chosen before anything was measured: models, stages, budgets, what is recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Case:
    """One training; `sequences` is of one rank in one forward, `device` bytes of each rank, None all there is.

    What `device` has no room for goes to `host` bytes of the host's memory, None: to a file.
    """

    name: str
    family: str
    size: str
    ranks: int
    stage: int
    sequences: int
    length: int
    overrides: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    accumulation: int = 1
    clip: float | None = 1.0
    checkpointing: bool = False
    device: int | None = None
    host: int | None = None


_30M: Final = {
    "hidden_size": 512,
    "num_hidden_layers": 10,
    "intermediate_size": 1376,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
_EXPERTS: Final = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1024, "moe_intermediate_size": 256}
_WIDE: Final = {"hidden_size": 768, "num_hidden_layers": 8, "intermediate_size": 2048, "num_attention_heads": 12}

CASES: Final = (
    Case("llama 150m, 2 ranks, stage 3", "llama", "150m", 2, 3, 4, 128),
    Case("llama 150m, 2 ranks, stage 2, recomputed", "llama", "150m", 2, 2, 2, 256, clip=None, checkpointing=True),
    Case("llama 150m, 1 rank", "llama", "150m", 1, 0, 4, 128),
    Case("llama 30m, 2 ranks, stage 1, 2 micro-batches", "llama", "tiny", 2, 1, 8, 128, _30M, accumulation=2),
    Case("llama 30m, 2 ranks, stage 0", "llama", "tiny", 2, 0, 2, 512, _30M),
    Case("llama 30m, 2 ranks, stage 3, bf16", "llama", "tiny", 2, 3, 1, 128, _30M, precision="bf16"),
    Case("gpt2 small, 2 ranks, stage 2", "gpt2", "small", 2, 2, 2, 256),
    Case("gpt2 small, 1 rank, recomputed", "gpt2", "small", 1, 0, 4, 128, checkpointing=True),
    Case("qwen3 60m, 2 ranks, stage 3", "qwen3", "tiny", 2, 3, 8, 128, _WIDE),
    Case("deepseek 30m, 2 ranks, stage 3", "deepseek", "tiny", 2, 3, 8, 128, _EXPERTS),
    Case("llama 150m, 2 ranks, 900 MB each", "llama", "150m", 2, 3, 2, 256, clip=None, device=900 * 10**6),
    Case("llama 150m, 2 ranks, 1100 MB each, clipped", "llama", "150m", 2, 3, 4, 128, device=1100 * 10**6),
)
