"""One rank of those that plan: the machine and the operators are measured once, then every budget has its plan."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch.distributed as dist

import ciuic_dist as cd
from benchmarks.frontier.cases import OURS, Planned
from benchmarks.measure.setting import Setting
from ciuic_dist.comm import groups
from ciuic_dist.config import ModelConfig
from ciuic_dist.estimate.calls import Clock
from ciuic_dist.estimate.job import within
from ciuic_dist.estimate.planner import make_plan
from ciuic_dist.estimate.probe import probe
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.models.build import build
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.training import Training

_NVME: Final = 8 << 30
"""Bytes that all ranks together may spill."""


def plans(setting: Setting, fractions: Sequence[float], folder: Path) -> Iterator[Planned]:
    """For all there is, then for each part of what that plan takes. Collective."""
    machine = probe(folder, _NVME)
    family, size, overrides = setting.model_settings()
    model = build(ModelConfig(family, size, overrides=overrides), vocab_size=None, seed=setting.seed)
    profile_of = profiles(model, causal_batch(setting.sequence), most=setting.batch // setting.ranks, clock=Clock())
    training = Training(setting.batch, setting.sequence, setting.dtype, clips=False)

    def planned(device: int | None) -> Plan:
        where = machine if device is None else within(machine, cd.Memory(device=device))
        return make_plan(f"{setting.model} {setting.size}", profile_of, where, training)

    roomy = planned(None)
    yield Planned(OURS, None, _fields(roomy))
    for fraction in fractions:
        name, device = f"{OURS}, {fraction:.0%}", int(fraction * roomy.predicted.peak["device"])
        try:
            yield Planned(name, device, _fields(planned(device)))
        except BudgetError as error:
            yield Planned(name, device, error=f"BudgetError: {error}")


def _fields(plan: Plan) -> dict[str, object]:
    fields: dict[str, object] = json.loads(plan.to_json())
    return fields


def main(setting: str, fractions: str, folder: str, result: str) -> None:
    """Write the plans for `fractions` (JSON, as `setting`) to `result`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cd.init()
    made = plans(Setting(**json.loads(setting)), json.loads(fractions), Path(folder))
    Path(result).write_text(json.dumps({"plans": [asdict(each) for each in made]}), encoding="utf-8")
    groups.meet()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
