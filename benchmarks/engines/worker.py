"""One rank: train under one engine, leave what was measured as JSON. Started by `launch`."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.engines.engines import MAKERS, join
from benchmarks.measure import loop
from benchmarks.measure.memory import peak_rss
from benchmarks.measure.setting import Setting
from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank measured."""

    parameters: int
    steps: loop.Steps
    peak_rss: int
    accelerator: str


def train(engine: str, setting: Setting) -> Report:
    """Build the model, wrap it, train it."""
    if setting.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    join(engine, setting)
    family, size, overrides = setting.model_settings()
    model = build(ModelConfig(family, size, overrides=overrides), vocab_size=None, seed=setting.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.train()
    step = MAKERS[engine](model, setting)
    del model
    gc.collect()
    steps = loop.run(step, setting, loop.batches(setting, setting.world(engine)))
    return Report(
        parameters=parameters,
        steps=steps,
        peak_rss=peak_rss(),
        accelerator=torch.cuda.get_device_name() if setting.device == "cuda" else "",
    )


def main(engine: str, setting: str, result: str) -> None:
    """Train as `setting` (JSON) says and write the report to `result`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    report = train(engine, Setting(**json.loads(setting)))
    Path(result).write_text(json.dumps(asdict(report)), encoding="utf-8")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
