"""One rank: train one case, leave what was measured as JSON."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist
from torch import nn

import ciuic_dist as cd
from benchmarks.measure import loop
from benchmarks.measure.memory import peak_rss
from benchmarks.measure.setting import Setting
from benchmarks.spill.case import Case
from benchmarks.spill.engines import make
from benchmarks.spill.prelude import prelude, with_checkpointing
from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build
from ciuic_dist.sharding.registry import sharded_of


@dataclass(frozen=True, slots=True)
class Spilled:
    """Ours under a budget. `links` (bytes), `stall_seconds` and the counts are those of the timed steps."""

    transient: int
    page_bytes: int
    links: dict[str, int]
    stall_seconds: float
    accesses: int
    hits: int
    faults: int
    unforeseen: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank measured; `disk_read` and `disk_written` are bytes of all timed steps, `device_peak` ours alone."""

    parameters: int
    baseline: int
    steps: loop.Steps
    peak_rss: int
    disk_read: int
    disk_written: int
    device_peak: int
    spilled: Spilled | None


def train(engine: str, setting: Setting, make: Callable[[nn.Module], loop.Step]) -> Report:
    """Build the model, spread it by `make`, train it."""
    stream, baseline = prelude(engine, setting)
    family, size, overrides = setting.model_settings()
    model = build(ModelConfig(family, size, overrides=overrides), vocab_size=None, seed=setting.seed).train()
    if setting.checkpointing:
        with_checkpointing(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    step = make(model)
    ours = model if engine == "ours" else None
    del model
    gc.collect()
    counts = Counts(ours)
    steps = loop.run(step, setting, stream, counts)
    return Report(
        parameters=parameters,
        baseline=baseline,
        steps=steps,
        peak_rss=peak_rss(),
        disk_read=counts.disk["read_bytes"],
        disk_written=counts.disk["write_bytes"],
        device_peak=cd.status(ours).tiers["device"].peak if ours else 0,
        spilled=counts.spilled(),
    )


class Counts:
    """What the engine and the kernel count while the context lasts; `model` is ours, or None."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self.disk: Counter[str] = Counter()
        self.moves: Counter[str] = Counter()

    def __enter__(self) -> None:
        self.disk.subtract(_disk())
        self.moves.subtract(_moves(self._model))

    def __exit__(self, *_: object) -> None:
        self.disk.update(_disk())
        self.moves.update(_moves(self._model))

    def spilled(self) -> Spilled | None:
        """As of now, with what moved in the context."""
        spill = sharded_of(self._model).spill if self._model else None
        if spill is None or self._model is None:
            return None
        counts = {name: self.moves.pop(name) for name in _COUNTS}
        return Spilled(
            transient=spill.transient,
            page_bytes=spill.page_bytes,
            links=dict(self.moves),
            **counts,
        )


_COUNTS: Final = ("stall_seconds", "accesses", "hits", "faults", "unforeseen")


def _moves(model: nn.Module | None) -> dict[str, Any]:
    if model is None:
        return {}
    spilling = cd.status(model).spilling
    return {name: getattr(spilling, name) for name in _COUNTS} | {
        name: link.bytes for name, link in spilling.links.items()
    }


def _disk() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def main(case: str, setting: str, result: str) -> None:
    """Train `case` as `setting` says (both JSON) and write the report to `result`."""
    what, how = Case(**json.loads(case)), Setting(**json.loads(setting))
    leave(result, what.engine, how, partial(make, case=what, setting=how))


def leave(result: str, engine: str, setting: Setting, make: Callable[[nn.Module], loop.Step]) -> None:
    """Train and write the report to `result`; the group is gone afterwards."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    report = train(engine, setting, make)
    Path(result).write_text(json.dumps(asdict(report)), encoding="utf-8")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
