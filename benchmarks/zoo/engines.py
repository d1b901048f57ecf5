"""The engines, each as few lines as its users write: wrap, step, and the whole parameters back."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.zoo.entry import Batch
from benchmarks.zoo.training import LEARNING_RATE, ROWS, WEIGHT_DECAY


class Trainer(Protocol):
    """A wrapped model and its optimizer, on one rank of a group."""

    def step(self, batch: Batch) -> float:
        """One optimizer step on this rank's micro-batch; its loss."""

    def parameters(self) -> dict[str, Tensor]:
        """Collective: the whole parameters under their original names, complete on rank 0."""


class Ours:
    """ciuic_dist through its public API."""

    def __init__(self, model: nn.Module, stage: int) -> None:
        import ciuic_dist as cd

        self._whole = cd.full_state_dict
        self._model = cd.shard(model, stage=stage)
        self._optimizer = cd.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(self, batch: Batch) -> float:
        """Trainer.step."""
        loss: Tensor = self._model(**batch)["loss"]
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def parameters(self) -> dict[str, Tensor]:
        """Trainer.parameters."""
        return self._whole(self._model)


class FSDP2:
    """torch's fully_shard over the repeated blocks, then the root; stage 2 keeps parameters between the passes."""

    def __init__(self, model: nn.Module, stage: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in [*repeated(model), model]:
            fully_shard(block, mesh=mesh, reshard_after_forward=stage == 3)
        self._model = model
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step(self, batch: Batch) -> float:
        """Trainer.step."""
        loss: Tensor = self._model(**batch)["loss"]
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def parameters(self) -> dict[str, Tensor]:
        """Trainer.parameters."""
        from torch.distributed.tensor import DTensor

        named = self._model.named_parameters()
        return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in named}


class DeepSpeed:
    """DeepSpeed's ZeRO with torch's AdamW, mixtures of experts marked as leaves."""

    def __init__(self, model: nn.Module, stage: int) -> None:
        import deepspeed

        if stage == 3:
            deepspeed.utils.set_z3_leaf_modules(model, mixtures(model), raise_if_not_found=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        config = {
            "train_micro_batch_size_per_gpu": ROWS,
            "steps_per_print": 10**9,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
        }
        self._stage = stage
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def step(self, batch: Batch) -> float:
        """Trainer.step."""
        loss: Tensor = self._engine(**batch)["loss"]
        self._engine.backward(loss)
        self._engine.step()
        return loss.item()

    def parameters(self) -> dict[str, Tensor]:
        """Trainer.parameters."""
        import deepspeed

        named = dict(self._engine.module.named_parameters())
        with deepspeed.zero.GatheredParameters(list(named.values()), enabled=self._stage == 3):
            return {name: parameter.detach().clone() for name, parameter in named.items()}


ENGINES: dict[str, Callable[[nn.Module, int], Trainer]] = {"ours": Ours, "fsdp2": FSDP2, "deepspeed": DeepSpeed}


def start(engine: str, world: int) -> None:
    """Join the group that torchrun's environment variables describe, as the engine's users do."""
    if engine == "ours":
        import ciuic_dist as cd

        cd.init()
    elif engine == "deepspeed":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    else:
        dist.init_process_group("gloo", world_size=world)


def installed(engine: str) -> bool:
    """Whether the package that the engine needs is there."""
    return engine != "deepspeed" or importlib.util.find_spec("deepspeed") is not None


def repeated(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost items of the module lists that hold one class more than once: the blocks."""
    for child in model.children():
        items = list(child) if isinstance(child, nn.ModuleList) else []
        kinds = {type(item) for item in items}
        if len(items) > 1 and len(kinds) == 1 and kinds != {nn.ModuleList}:
            yield from items
        else:
            yield from repeated(child)


def mixtures(model: nn.Module) -> list[type[nn.Module]]:
    """The classes of the modules that route tokens to experts: those with a child called expert-something."""
    return list(
        {
            type(module)
            for module in model.modules()
            if any("expert" in name.lower() for name, _ in module.named_children())
        }
    )
