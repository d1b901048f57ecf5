"""Evaluation, which doesn't depend on how a model is sharded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ciuic_dist.engines.base import Batch


class Evaluates:
    """The part of Engine that is the same for all."""

    model: nn.Module

    def evaluate(self, batch: Batch) -> Tensor:
        """Loss of one batch of this rank without gradients: 0-dim fp32."""
        self.model.eval()
        with torch.no_grad():
            loss: Tensor = self.model(**batch).loss
        self.model.train()
        return loss.float()
