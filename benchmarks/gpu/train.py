"""One process: train one trial, leave what was measured as JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import ciuic_dist as cd
from benchmarks.gpu.begin import begin
from benchmarks.gpu.engines import make
from benchmarks.gpu.trials import Trial
from benchmarks.measure.device import allocated, begin_peak, reserved, settle
from benchmarks.measure.drawn import Drawn
from benchmarks.measure.setting import Setting
from benchmarks.spill.prelude import with_checkpointing
from ciuic_dist.comm.groups import device
from ciuic_dist.config import ModelConfig
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import defer
from ciuic_dist.monitor.spilling import Spilling


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of a step: of forward and backward, and of the blocks' forward a second time."""

    flops: float
    recomputed: float


@dataclass(frozen=True, slots=True)
class Report:
    """Bytes, seconds. `step_seconds` has every step, the warm-up's too; all else but `reserved` is the timed steps'.

    `preparing`: from the model on meta to the first step. `reserved`: by the allocator, at most, by the end of each
    step. `tiers`, `moved` (bytes by link), `stall_seconds`: ours alone.
    """

    parameters: int
    layers: int
    work: Work
    preparing: float
    step_seconds: list[float]
    losses: list[float]
    allocated: int
    reserved: list[int]
    tiers: dict[str, Any]
    moved: dict[str, int]
    stall_seconds: float


def work_of(model: nn.Module, setting: Setting) -> Work:
    """Of one step, as the planner counts it; ``model`` keeps its activations."""
    profile_of = profiles(
        model, causal_batch(setting.sequence), precision="bf16", fused_attention=True, most=setting.batch
    )
    profile = profile_of(setting.batch)
    again = sum(p.flops for p in profile.passes if p.unit != profile.root and not p.backward)
    return Work(sum(p.flops for p in profile.passes), again)


def train(trial: Trial) -> Report:
    """Build the model, draw its values, train it."""
    setting, where = trial.setting, device()
    family, size, overrides = setting.model_settings()
    model = build(ModelConfig(family, size, overrides=overrides), vocab_size=None, seed=setting.seed).train()
    work = work_of(model, setting)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    torch.manual_seed(setting.seed)  # of the device too: every engine begins with the same values and tokens
    began = time.perf_counter()
    step = make(with_checkpointing(defer(model, Drawn(model, where))), trial)
    settle()
    preparing = time.perf_counter() - began
    config: Any = model.config
    ids = torch.randint(0, config.vocab_size, (setting.batch, setting.sequence), device=where)
    batch = {"input_ids": ids, "labels": ids}
    seconds, losses, most = [], [], []
    before = _spilling(model, trial)
    for index in range(setting.warmup + setting.steps):
        if index == setting.warmup:
            begin_peak()
            before = _spilling(model, trial)
        began = time.perf_counter()
        losses.append(step(batch))
        settle()
        seconds.append(time.perf_counter() - began)
        most.append(reserved())
    moved = _spilling(model, trial).since(before)
    return Report(
        parameters=parameters,
        layers=config.num_hidden_layers,
        work=work,
        preparing=preparing,
        step_seconds=seconds,
        losses=[loss.item() for loss in losses],
        allocated=allocated(),
        reserved=most,
        tiers={name: asdict(usage) for name, usage in cd.status(model).tiers.items()} if _is_ours(trial) else {},
        moved={name: link.bytes for name, link in moved.links.items()},
        stall_seconds=moved.stall_seconds,
    )


def _is_ours(trial: Trial) -> bool:
    return trial.engine == "ours"


def _spilling(model: nn.Module, trial: Trial) -> Spilling:
    return cd.status(model).spilling if _is_ours(trial) else Spilling()


def main(trial: str, result: str) -> None:
    """Train `trial` (JSON) and write the report to `result`."""
    begin()
    fields: dict[str, Any] = json.loads(trial)
    report = train(Trial(**fields | {"setting": Setting(**fields["setting"])}))
    Path(result).write_text(json.dumps(asdict(report)), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
