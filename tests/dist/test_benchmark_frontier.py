"""The benchmark of the frontier runs: it plans, trains by the plan and beside peers, and draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
