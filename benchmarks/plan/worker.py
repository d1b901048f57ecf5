"""One rank: predict a case, then train it; leaves both as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn

import ciuic_dist as cd
from benchmarks.measure.device import allocated, begin_peak, settle
from benchmarks.measure.drawn import Drawn
from benchmarks.plan.cases import Case
from ciuic_dist.comm import groups
from ciuic_dist.config import EngineConfig, MemoryConfig, ModelConfig, OptimizerConfig, TrainConfig
from ciuic_dist.engines.paged import PagedEngine
from ciuic_dist.estimate.calls import Clock
from ciuic_dist.estimate.job import within
from ciuic_dist.estimate.probe import probe
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.memory.live import LiveBytes
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import defer
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.choices import Limits
from ciuic_dist.planning.forecast import Forecast
from ciuic_dist.planning.search import search
from ciuic_dist.planning.training import Training

_WARMUP: Final = 3
_NVME: Final = 8 << 30


@dataclass(frozen=True, slots=True)
class Report:
    """Bytes and seconds of one rank; `probing` is what it took to measure the machine and the operators."""

    probing: float
    predicted: Forecast
    step_seconds: list[float]
    peak: int


def predict(case: Case, folder: str) -> tuple[Forecast, float]:
    """Before the model is there; the forecast, and the seconds that measuring took."""
    began = time.perf_counter()
    to_file = case.device is not None and case.host is None
    machine = probe(Path(folder) if to_file else None, _NVME if to_file else 0)
    if case.device is not None:
        machine = within(machine, cd.Memory(device=case.device, host=case.host))
    on_cpu = groups.device().type == "cpu"
    profile_of = profiles(
        _model(case),
        causal_batch(case.length),
        precision="bf16" if case.precision == "bf16" else None,
        fused_attention=not on_cpu,
        most=case.sequences,
        clock=Clock() if on_cpu else None,
    )
    probing = time.perf_counter() - began
    sequences = case.sequences * case.accumulation * case.ranks
    training = Training(sequences, case.length, case.precision, clips=case.clip is not None)
    limits = Limits(case.stage, case.sequences, Way.KEEP, case.checkpointing)
    return search(profile_of, machine, training, limits).forecast, probing


def train(case: Case, folder: str, steps: int) -> tuple[list[float], int]:
    """Seconds of each timed step, and the most bytes at a time, activations and temporary values among them."""
    model = _model(case).train()
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    engine = PagedEngine(
        model,
        engine=EngineConfig(stage=case.stage),
        optimizer=OptimizerConfig(),
        train=TrainConfig(clip=case.clip, precision=case.precision),  # type: ignore[arg-type]
        memory=_budgets(case, folder),
    )
    generator = torch.Generator().manual_seed(groups.rank())
    seconds = []
    for index in range(_WARMUP + steps):
        if index == _WARMUP:
            begin_peak()
        groups.meet()
        settle()
        began = time.perf_counter()
        _step(engine, case, generator)
        settle()
        seconds.append(time.perf_counter() - began)
    if groups.device().type != "cpu":
        return seconds[_WARMUP:], allocated()
    peak = _counted(engine, case, generator) if case.device is None else 0
    return seconds[_WARMUP:], peak + engine.status()["device"].peak


def _budgets(case: Case, folder: str) -> MemoryConfig | None:
    if case.device is None:
        return None
    host, nvme = (None, f"{folder}:{_NVME}") if case.host is None else (str(case.host), None)
    return MemoryConfig(str(case.device), host, nvme, "keep")


def _counted(engine: PagedEngine, case: Case, generator: torch.Generator) -> int:
    """Bytes that a forward and backward take besides; the status of a model under a budget has them.

    Of the first micro-batch: in later ones gradients wait that the status has too.
    """
    with LiveBytes() as live:
        _micro_batch(engine, case, generator, 0)
    for index in range(1, case.accumulation):
        _micro_batch(engine, case, generator, index)
    engine.step(case.clip)
    peak: int = live.peak
    return peak


def _step(engine: PagedEngine, case: Case, generator: torch.Generator) -> None:
    for index in range(case.accumulation):
        _micro_batch(engine, case, generator, index)
    engine.step(case.clip)


def _micro_batch(engine: PagedEngine, case: Case, generator: torch.Generator, index: int) -> None:
    ids = torch.randint(0, 256, (case.sequences, case.length), generator=generator).to(groups.device())
    last = index == case.accumulation - 1
    engine.forward_backward({"input_ids": ids, "labels": ids}, accumulation=case.accumulation, last=last)


def _model(case: Case) -> nn.Module:
    model = build(ModelConfig(case.family, case.size, overrides=case.overrides), vocab_size=None, seed=0)
    where = groups.device()
    return model if where.type == "cpu" else defer(model, Drawn(model, where))


def main(case: str, folder: str, steps: str, result: str) -> None:
    """Predict and train `case` (JSON) and write the report to `result`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    fields: dict[str, Any] = json.loads(case)
    cd.init()
    predicted, probing = predict(Case(**fields), folder)
    seconds, peak = train(Case(**fields), folder, int(steps))
    report = Report(probing, predicted, seconds, peak)
    Path(result).write_text(json.dumps(asdict(report) | {"seconds": median(seconds)}), encoding="utf-8")
    groups.meet()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
