"""The benchmark of budgets runs: it trains unspilled and within a part of the peak, and measures drive and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_budget_beside_memory_to_spare(tmp_path: Path) -> None:
    sizes = "--size tiny --parts budgets --batch 2 --sequence 16 --steps 1 --warmup 3 --repetitions 1 --fractions 0.9"
    command = [sys.executable, "-m", "benchmarks.spill", *sizes.split()]
    out = ["--folder", str(tmp_path), "--out", str(tmp_path / "o")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *out], env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    trials = {line["case"]: line for line in lines if line["kind"] == "trial" and line["part"] == "budgets"}
    assert trials.keys() == {"unspilled", "90%"}
    assert trials["90%"]["losses"] == trials["unspilled"]["losses"]
    assert 0 < trials["90%"]["device_peak"] <= trials["90%"]["device_budget"]
    [rates] = [line for line in lines if line["kind"] == "rates"]
    assert min(rates["read"], rates["write"], rates["both"], rates["copy"]) > 0
    assert "| 90% |" in (tmp_path / "o.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"o.jsonl", "o.md"}
