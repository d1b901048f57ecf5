"""torch's fully_shard as an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ciuic_dist.checkpoint.torch_sharded import load_torch_sharded, save_torch_sharded
from ciuic_dist.comm.groups import device
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.config import ConfigError, EngineConfig, OptimizerConfig, TrainConfig
from ciuic_dist.engines.adapter import Adapter, adamw, need_group
from ciuic_dist.engines.base import Batch
from ciuic_dist.models.deferred import materialize
from ciuic_dist.sharding.units import find_units


class FSDP2Engine(Adapter):
    """Stage 3 reshards parameters after forward, stage 2 keeps them until backward is through."""

    def __init__(
        self, model: nn.Module, *, engine: EngineConfig, optimizer: OptimizerConfig, train: TrainConfig
    ) -> None:
        if engine.zero_stage < 2:
            raise ConfigError(
                f"engine=fsdp2 always shards gradients and state: engine.stage={engine.stage} must be 2 or 3"
            )
        need_group()
        self._compress = bool(train.compress_checkpoints)
        self.model = materialize(model)
        mesh = Mesh(engine.group)
        self._sharded = _shard(self.model, mesh, reshard=engine.stage == 3, bf16=train.precision == "bf16")
        self.optimizer = adamw(self.model, optimizer)

    def forward_backward(self, batch: Batch, *, accumulation: int, last: bool) -> Tensor:
        """See Engine."""
        self._sharded.set_requires_gradient_sync(last)
        loss: Tensor = self.model(**batch).loss
        torch.autograd.backward(loss / accumulation)
        return loss.detach().float()

    def step(self, max_norm: float | None) -> float | None:
        """See Engine."""
        norm = None
        if max_norm is not None:
            total = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
            norm = (total.full_tensor() if isinstance(total, DTensor) else total).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See Engine; the paged engine can load it."""
        save_torch_sharded(path, self.model, self.optimizer, extra, compress=self._compress)

    def load(self, path: Path) -> dict[str, Any]:
        """See Engine; also what the paged engine has saved."""
        return load_torch_sharded(path, self.model, self.optimizer)


def _shard(model: nn.Module, groups: Mesh, *, reshard: bool, bf16: bool) -> FSDPModule:
    sizes = (groups.size,) if groups.replicas == 1 else (groups.replicas, groups.size)
    mesh = init_device_mesh(device().type, sizes, mesh_dim_names=("replicate", "shard")[-len(sizes) :])
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for module in [*(unit.module for unit in find_units(model) if unit.name), model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    assert isinstance(model, FSDPModule)
    return model
