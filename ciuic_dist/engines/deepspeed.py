"""DeepSpeed ZeRO as an engine. An optional extra."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ciuic_dist.checkpoint.partitioned import load_partitioned, save_partitioned
from ciuic_dist.comm.groups import world_size
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.config import ConfigError, EngineConfig, OptimizerConfig, TrainConfig
from ciuic_dist.engines.adapter import Adapter, adamw, need_group
from ciuic_dist.engines.base import Batch
from ciuic_dist.engines.zero_parts import filling, parts_of
from ciuic_dist.models.deferred import materialize


class DeepSpeedEngine(Adapter):
    """Stages 0 to 3 of ZeRO, without offload."""

    def __init__(
        self, model: nn.Module, *, engine: EngineConfig, optimizer: OptimizerConfig, train: TrainConfig
    ) -> None:
        deepspeed = _import()
        need_group()
        if Mesh(engine.group).replicas > 1:
            raise ConfigError(f"engine=deepspeed shards over all ranks here: leave engine.group={engine.group} out")
        self._compress = bool(train.compress_checkpoints)
        materialize(model)
        if engine.zero_stage == 3:
            _keep_experts_together(model)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.optimizer = adamw(model, optimizer)
        settings = _settings(engine, train)
        self._engine: Any = deepspeed.initialize(model=model, optimizer=self.optimizer, config=settings)[0]
        self.model = self._engine
        # bf16 rounds the buffers too; rotary frequencies lose so much by it that the loss shows it.
        for name, buffer in model.named_buffers():
            buffer.data = buffers[name].to(buffer.device)

    def forward_backward(self, batch: Batch, *, accumulation: int, last: bool) -> Tensor:
        """See Engine. DeepSpeed divides by the accumulation itself."""
        assert accumulation == self._engine.gradient_accumulation_steps()
        loss: Tensor = self._engine(**batch).loss
        self._engine.backward(loss)
        if not last:
            self._engine.step()  # only counts the micro-batch
        return loss.detach().float()

    def step(self, max_norm: float | None) -> float | None:
        """See Engine. Clips to the train.clip that it was made with."""
        norm = None if max_norm is None else self._norm()
        self._engine.step()
        if max_norm is not None and norm is None:
            norm = float(self._engine.get_global_grad_norm())
        return norm

    def _norm(self) -> float | None:
        """Where DeepSpeed has no optimizer of its own (stage 0 in fp32): it clips then without saying the norm."""
        if self._engine.optimizer is not self.optimizer:
            return None
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """See Engine; the other engines can load it."""
        parts = parts_of(self._engine, self.optimizer)
        save_partitioned(path, self._engine.module, self.optimizer, parts, extra, compress=self._compress)

    def load(self, path: Path) -> dict[str, Any]:
        """See Engine; also what the other engines have saved."""
        engine, optimizer = self._engine, self.optimizer
        parts, room = parts_of(engine, optimizer), partial(filling, engine, optimizer)
        return load_partitioned(path, engine.module, optimizer, parts, room)


def _import() -> Any:
    """The package, told what it would otherwise guess aloud."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            "engine=deepspeed needs the DeepSpeed package: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed"
        ) from error
    # It would compile an inference collective here, unused in training, and say so on stdout.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It warns of torch's renamed collectives on every call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


def _settings(engine: EngineConfig, train: TrainConfig) -> dict[str, Any]:
    micro_batch = train.micro_batch or train.global_batch // world_size()
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.global_batch // (world_size() * micro_batch),
        "gradient_clipping": train.clip or 0.0,
        "zero_optimization": {"stage": engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": train.precision == "bf16"},
        "steps_per_print": 10**9,
    }


def _keep_experts_together(model: nn.Module) -> None:
    """Gather a mixture of experts as one: fetching each on use hangs where a rank uses fewer of them."""
    from deepspeed.utils import set_z3_leaf_modules

    mixtures = {type(module) for module in model.modules() if isinstance(getattr(module, "experts", None), nn.Module)}
    if mixtures:
        set_z3_leaf_modules(model, list(mixtures))
