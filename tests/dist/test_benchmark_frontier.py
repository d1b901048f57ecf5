"""The benchmark of the frontier runs: it plans, trains by the plan and beside peers, and draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ciuic_dist as cd
from benchmarks.frontier.cases import Case
from benchmarks.frontier.engines import make
from benchmarks.measure.setting import Setting
from ciuic_dist.comm.groups import rank
from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build
from ciuic_dist.planning.machine import Machine
from tests.dist.launch import launch

ROOT = Path(__file__).parents[2]
LENGTH = 16
SETTING = Setting(
    model="llama",
    size="tiny",
    dtype="fp32",
    device="cpu",
    ranks=2,
    hosts="1",
    batch=8,
    sequence=LENGTH,
    steps=1,
    warmup=2,
)
HERE = Machine("here", 1, 2, 1 << 30, 1e12, 1e12, 1e10, 1e-6, nvme=1 << 25, read=1e9, write=1e9, shared=True)


def losses(micro_batch: int, folder: str) -> list[float]:
    """Of three steps of this rank on four sequences, so many at a time."""
    model = build(ModelConfig("llama", "tiny"), vocab_size=None, seed=0)
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)
    plan = cd.plan(model, HERE, {"input_ids": ids, "labels": ids}, sequences=8, stage=2, clips=False)
    plan = replace(plan, micro_batch=micro_batch, accumulation=4 // micro_batch)
    step = make(model, Case("ours", "ours", folder, plan=plan.to_json()), SETTING)
    generator = torch.Generator().manual_seed(rank())
    batches = (torch.randint(0, 256, (4, LENGTH), generator=generator) for _ in range(3))
    return [step({"input_ids": batch, "labels": batch}).item() for batch in batches]


def test_micro_batches_are_as_planned_and_change_nothing(tmp_path: Path) -> None:
    whole, parts = (launch(losses, size, str(tmp_path)) for size in (4, 1))
    assert whole[0] != whole[1]
    for rank_whole, rank_parts in zip(whole, parts, strict=True):
        assert rank_parts == pytest.approx(rank_whole, abs=1e-5)


@pytest.mark.slow
def test_ours_as_planned_beside_ddp_and_fsdp2(tmp_path: Path) -> None:
    sizes = "--size tiny --batch 4 --sequence 16 --steps 1 --warmup 2 --repetitions 1 --fractions 1.2,0.001"
    command = [sys.executable, "-m", "benchmarks.frontier", *sizes.split(), "--cases", "ours,ddp,fsdp2"]
    out = ["--folder", str(tmp_path), "--out", str(tmp_path / "o"), "--image", str(tmp_path / "o.png")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *out], env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["configuration", *["plan"] * 3, *["trial"] * 4]
    roomy, budget, refused = lines[1:4]
    assert roomy["device"] is None
    assert budget["device"] == budget["plan"]["device"] == int(1.2 * roomy["plan"]["predicted"]["peak"]["device"])
    assert refused["plan"] is None
    assert "BudgetError: llama tiny doesn't fit" in refused["error"]
    trials = lines[4:]
    assert [trial["case"] for trial in trials] == ["ours", "ours, 120%", "ddp", "fsdp2"]
    for trial in trials:
        assert trial["losses"] == pytest.approx(trials[-1]["losses"], abs=1e-5)
        assert trial["memory"] > trial["baseline"] > 0
    assert trials[1]["device_budget"] == budget["device"] >= trials[1]["device_peak"]
    assert "* at fsdp2's memory" in done.stdout
    assert (tmp_path / "o.md").read_text() == f"# The frontier\n\n{done.stdout}"
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"o.jsonl", "o.md", "o.png"}
