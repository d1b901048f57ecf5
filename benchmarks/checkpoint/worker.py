"""One rank: train, save and load by one way, leave what was measured as JSON."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.checkpoint import drive
from benchmarks.checkpoint.names import ENGINES
from benchmarks.checkpoint.ways import Training, begin
from benchmarks.engines.engines import join
from benchmarks.measure import loop
from benchmarks.measure.memory import PssSampler, Sample
from benchmarks.measure.setting import Setting
from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint of this rank, in seconds.

    `stall`: until training could go on; `stood`: it stood still in its next steps; `finished`: until this rank had
    written all; `steps`: those trained meanwhile; `synced`: what an fsync of every file then took, on rank 0 alone.
    """

    stall: float
    stood: float
    finished: float
    steps: list[float]
    synced: float


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank measured.

    `bytes` on the disk; `loads` in seconds, and the drive alone for the same files before each of them, `straight`:
    rank 0 has these two; `off`: by how much the loss after loading was not the one after saving; `saving` and
    `loading`: memory during one more of each.
    """

    parameters: int
    steps: loop.Steps
    saved: list[Saved]
    bytes: int
    loads: list[float]
    straight: list[float]
    off: float
    saving: list[Sample]
    loading: list[Sample]


def measure(way: str, setting: Setting, folder: Path, saves: int, loads: int, budget: str) -> Report:
    """Train, save `saves` times, once more to load it `loads` times, once more each with memory sampled."""
    join(ENGINES[way], setting)
    family, size, overrides = setting.model_settings()
    model = build(ModelConfig(family, size, overrides=overrides), vocab_size=None, seed=setting.seed).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    training = begin(way, model, setting, budget, folder)
    del model
    gc.collect()
    stream = loop.batches(setting, setting.ranks)
    steps = loop.run(training.step, setting, stream)
    path = folder / "checkpoint"
    saved = [checkpoint(training, path, stream) for _ in range(saves)]
    with PssSampler() as saving:
        checkpoint(training, path, stream)
    checkpoint(training, path, stream, alone=True)
    nbytes = sum(file.stat().st_size for file in _files(path)) if _first() else 0
    batch = next(stream)
    loss = training.step(batch)
    timed = [(_read(path), _load(training, path)) for _ in range(loads)]
    straight, loaded = ([*column] for column in zip(*timed, strict=True))
    off = abs(training.step(batch) - loss).item()
    with PssSampler() as loading:
        _load(training, path)
    return Report(parameters, steps, saved, nbytes, loaded, straight, off, saving.samples, loading.samples)


def checkpoint(training: Training, path: Path, stream: Iterator[loop.Batch], *, alone: bool = False) -> Saved:
    """In place of the one before; training goes on while it is written, unless it is to be `alone`."""
    _on_first(lambda: shutil.rmtree(path, ignore_errors=True))
    steps: list[float] = []
    began = time.perf_counter()
    writing = training.save(path)
    stall = finished = time.perf_counter() - began
    stood = 0.0
    if writing is not None and not alone:
        with ThreadPoolExecutor(1) as thread:
            end = thread.submit(_seconds_until, writing.done, began)
            while not _all(end.done()):
                step_began = time.perf_counter()
                training.step(next(stream))
                steps.append(time.perf_counter() - step_began)
            finished = end.result()
    if writing is not None:
        stood = writing.wait()
    synced = _on_first(lambda: _sync(path))
    return Saved(stall, stood, finished, steps, synced)


def _seconds_until(done: Callable[[], bool], began: float) -> float:
    while not done():
        time.sleep(0.001)
    return time.perf_counter() - began


def _read(path: Path) -> float:
    """Seconds that the drive takes for the checkpoint's files, whatever is in them; 0 on ranks beside the first."""
    dist.barrier()
    seconds = drive.seconds_to_read(_files(path)) if _first() else 0.0
    dist.barrier()
    return seconds


def _load(training: Training, path: Path) -> float:
    """Seconds of all ranks, from the drive and not from the page cache."""
    _on_first(lambda: _sync(path, drop=True))
    began = time.perf_counter()
    training.load(path)
    dist.barrier()
    return time.perf_counter() - began


def _all(here: bool) -> bool:
    flag = torch.tensor(int(here))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def _first() -> bool:
    return dist.get_rank() == 0


def _on_first(work: Callable[[], object]) -> float:
    """Seconds that rank 0 took, 0 on the others; all begin and leave together."""
    dist.barrier()
    began = time.perf_counter()
    if _first():
        work()
    seconds = time.perf_counter() - began if _first() else 0.0
    dist.barrier()
    return seconds


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _sync(path: Path, *, drop: bool = False) -> None:
    """Everything below ``path`` onto the drive, and out of the page cache where it is to ``drop``."""
    for part in [*path.rglob("*"), path]:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if drop and part.is_file():
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def main(way: str, setting: str, folder: str, saves: str, loads: str, budget: str, result: str) -> None:
    """Measure `way` as `setting` (JSON) says and write the report to `result`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    report = measure(way, Setting(**json.loads(setting)), Path(folder), int(saves), int(loads), budget)
    Path(result).write_text(json.dumps(asdict(report)), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
