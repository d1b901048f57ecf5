"""Our engine: the model sharded by ``cd.shard``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ciuic_dist.checkpoint.files import load, save
from ciuic_dist.checkpoint.saving import Saving
from ciuic_dist.engines.base import Batch
from ciuic_dist.engines.evaluates import Evaluates
from ciuic_dist.memory.budget import Memory
from ciuic_dist.monitor.spilling import Spilling
from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.optim.adamw import AdamW
from ciuic_dist.planning.plan import Plan
from ciuic_dist.sharding.clip import clip_grad_norm_
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.shard import shard
from ciuic_dist.status import status

if TYPE_CHECKING:
    from ciuic_dist.config import EngineConfig, MemoryConfig, OptimizerConfig, TrainConfig


class PagedEngine(Evaluates):
    """ZeRO stages 0 to 3 over shared memory or collectives, within budgets of memory."""

    def __init__(
        self,
        model: nn.Module,
        *,
        engine: EngineConfig,
        optimizer: OptimizerConfig,
        train: TrainConfig,
        memory: MemoryConfig | None = None,
        plan: Plan | None = None,
    ) -> None:
        self._compress = bool(train.compress_checkpoints)
        precision = "bf16" if train.precision == "bf16" else None
        budget = None if memory is None else Memory(memory.device, memory.host, memory.nvme, memory.activations)
        self.model = shard(
            model,
            stage=engine.zero_stage,
            memory=budget,
            mixed_precision=precision,
            plan=plan,
            group=engine.group,
        )
        self.optimizer = AdamW(
            self.model.parameters(),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            in_backward=train.clip is None,
            state_dtype=None if optimizer.state_dtype == "fp32" else optimizer.state_dtype,
        )

    def forward_backward(self, batch: Batch, *, accumulation: int, last: bool) -> Tensor:
        """Gradients of this micro-batch; reduced at the last one."""
        with nullcontext() if last else sharded_of(self.model).no_sync():
            loss: Tensor = self.model(**batch).loss
            (loss / accumulation).backward()
        return loss.detach().float()

    def step(self, max_norm: float | None) -> float | None:
        """Clip, update, drop the gradients."""
        norm = None if max_norm is None else float(clip_grad_norm_(self.model, max_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, path: Path, extra: dict[str, Any]) -> Saving:
        """One folder that any number of ranks can load; written while training goes on."""
        return save(path, model=self.model, optimizer=self.optimizer, wait=False, compress=self._compress, **extra)

    def load(self, path: Path) -> dict[str, Any]:
        """Model and optimizer in place; returns what else was saved."""
        return load(path, model=self.model, optimizer=self.optimizer)

    def status(self) -> dict[str, TierUsage]:
        """Bytes by tier."""
        return status(self.model).tiers

    def spilling(self) -> Spilling | None:
        """Under a budget."""
        return None if sharded_of(self.model).spill is None else status(self.model).spilling

    def close(self) -> None:
        """Let go of the other ranks, and of lower tiers."""
        sharded_of(self.model).close()
