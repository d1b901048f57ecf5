"""What a training loop asks of an engine. The loop knows this protocol and nothing of sharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ciuic_dist.checkpoint.saving import Saving
from ciuic_dist.monitor.spilling import Spilling
from ciuic_dist.monitor.usage import TierUsage

Batch = dict[str, Tensor]


class Engine(Protocol):
    """One model, its optimizer, and how they are spread over the ranks."""

    model: nn.Module
    optimizer: Optimizer

    def forward_backward(self, batch: Batch, *, accumulation: int, last: bool) -> Tensor:
        """Add the gradients of ``loss / accumulation`` for one micro-batch of this rank.

        Gradients are averaged over the ranks on the ``last`` micro-batch of a step.
        Returns the micro-batch's own loss: 0-dim fp32, detached.
        """
        ...

    def step(self, max_norm: float | None) -> float | None:
        """Clip to ``max_norm``, update, drop the gradients.

        Returns the total gradient norm before clipping, None where ``max_norm`` is None.
        """
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """Loss of one batch of this rank without gradients: 0-dim fp32."""
        ...

    def save(self, path: Path, extra: dict[str, Any]) -> Saving | None:
        """Write everything a resume needs; every rank calls it; ``path`` appears only when complete.

        What it gives is to be waited for: training may go on meanwhile.
        """
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Take back what ``save`` wrote, on any number of ranks; returns ``extra``."""
        ...

    def status(self) -> dict[str, TierUsage]:
        """Bytes of this rank by tier name."""
        ...

    def spilling(self) -> Spilling | None:
        """What this rank has moved between tiers since the start; None where nothing can move."""
        ...

    def close(self) -> None:
        """Free what the engine holds beyond the model."""
        ...
