"""The ways to save a training, each in the few lines that its users write, under the engine it belongs to.

torch.save and torch.distributed.checkpoint save what FSDP2 trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

import ciuic_dist as cd
from benchmarks.checkpoint.names import ASYNCHRONOUS, DCP, DEEPSPEED, OURS, TORCH_SAVE, WITHIN
from benchmarks.engines.engines import (
    deepspeed_engine,
    engine_step,
    fully_sharded,
    sharded,
    torch_adamw,
    training_loop,
)
from benchmarks.measure.loop import Step
from benchmarks.measure.setting import Setting

_NVME_LEAST: Final = 64 << 20
_NVME_PER_PARAMETER: Final = 24
"""Bytes: more than all state in fp32, for pages that aren't full."""


@dataclass(frozen=True, slots=True)
class Writing:
    """A checkpoint in the making; the thread that trains waits for it, seconds of which it stood still come back."""

    done: Callable[[], bool]
    wait: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Training:
    """Every rank calls each. ``save`` gives None where all is written when it returns."""

    step: Step
    save: Callable[[Path], Writing | None]
    load: Callable[[Path], object]


def ours(model: nn.Module, setting: Setting, memory: cd.Memory | None = None) -> Training:
    """`cd.save(..., wait=False)` and `cd.load`."""
    model, optimizer = sharded(model, setting, memory)

    def save(path: Path) -> Writing:
        saving = cd.save(path, model=model, optimizer=optimizer, wait=False)

        def wait() -> float:
            saving.wait()
            return saving.stall_seconds

        return Writing(lambda: saving.done, wait)

    return Training(training_loop(model, optimizer), save, lambda path: cd.load(path, model=model, optimizer=optimizer))


def torch_save(model: nn.Module, setting: Setting) -> Training:
    """Everything gathered on rank 0, which writes one file."""
    model, optimizer = _fsdp2(model, setting)
    first = dist.get_rank() == 0
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
    scattered = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)

    def save(path: Path) -> None:
        state = get_state_dict(model, optimizer, options=gathered)
        if first:
            path.mkdir()
            torch.save(state, path / "state.pt")

    def load(path: Path) -> None:
        values, moments = torch.load(path / "state.pt", mmap=True) if first else ({}, {})
        # One by one: set_state_dict skips what is empty, as it is on the other ranks, and rank 0 waits for them.
        set_model_state_dict(model, values, options=scattered)
        set_optimizer_state_dict(model, optimizer, moments, options=scattered)

    return Training(training_loop(model, optimizer), save, load)


def distributed(model: nn.Module, setting: Setting) -> Training:
    """`dcp.save` and `dcp.load`: each rank its shards."""
    model, optimizer = _fsdp2(model, setting)

    def save(path: Path) -> None:
        dcp.save(_shards(model, optimizer), checkpoint_id=path)

    return Training(training_loop(model, optimizer), save, lambda path: _load_shards(path, model, optimizer))


def asynchronous(model: nn.Module, setting: Setting) -> Training:
    """`dcp.async_save`: it copies the shards and writes them from a thread, which has a group of its own."""
    model, optimizer = _fsdp2(model, setting)
    group = dist.new_group(backend="gloo")

    def save(path: Path) -> Writing:
        future: Any = dcp.async_save(_shards(model, optimizer), checkpoint_id=path, process_group=group)

        def wait() -> float:
            future.result()
            return 0.0

        return Writing(future.done, wait)

    return Training(training_loop(model, optimizer), save, lambda path: _load_shards(path, model, optimizer))


def deepspeed(model: nn.Module, setting: Setting) -> Training:
    """`save_checkpoint` and `load_checkpoint` of ZeRO."""
    engine: Any = deepspeed_engine(model, setting)

    def save(path: Path) -> None:
        engine.model.save_checkpoint(str(path))

    return Training(engine_step(engine), save, lambda path: engine.model.load_checkpoint(str(path)))


_WAYS: Final[dict[str, Callable[[nn.Module, Setting], Training]]] = {
    OURS: ours,
    TORCH_SAVE: torch_save,
    DCP: distributed,
    ASYNCHRONOUS: asynchronous,
    DEEPSPEED: deepspeed,
}


def begin(way: str, model: nn.Module, setting: Setting, budget: str, folder: Path) -> Training:
    """Spread ``model`` (it is deferred); ``budget`` of a rank, the rest in ``folder``, counts for one way alone."""
    if way != WITHIN:
        return _WAYS[way](model, setting)
    nvme = _NVME_LEAST + _NVME_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    return ours(model, setting, cd.Memory(device=budget, nvme=f"{folder}:{nvme}"))


def _fsdp2(model: nn.Module, setting: Setting) -> tuple[nn.Module, Optimizer]:
    model = fully_sharded(model, setting)
    return model, torch_adamw(model, setting)


def _shards(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    values, moments = get_state_dict(model, optimizer)
    return {"model": values, "optimizer": moments}


def _load_shards(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    state = _shards(model, optimizer)
    dcp.load(state, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
