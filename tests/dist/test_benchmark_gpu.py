"""The GPU's benchmark runs on the CPU, small, where Hydra is missing as on the machines that it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "hydra.py").write_text("raise ImportError('Hydra is not for benchmarks')")
    command = [sys.executable, "-m", "benchmarks.gpu", "--folder", str(folder), "--out", str(folder / "o")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["configuration", "links", *["outcome"] * 2, *["trial"] * 3]
    links, plain, budgeted, (memory, spilled, peer) = lines[1], lines[2], lines[3], lines[4:]
    assert all(copies["up"] > 0 and copies["down"] > 0 and copies["both"] > 0 for copies in links["copies"])
    assert abs(plain["predicted_peak"] / plain["measured_peak"] - 1) < 0.03
    assert budgeted["measured_peak"] <= budgeted["device"]
    assert [line["engine"] for line in (memory, spilled, peer)] == ["ours", "ours", "fsdp2"]
    assert memory["losses"] == spilled["losses"]
    assert sum(memory["moved"].values()) == 0 < sum(spilled["moved"].values())
    assert 0 < spilled["tiers"]["device"]["peak"] <= spilled["device"]
    assert memory["rule_flops"] < 2 * memory["flops"]
    text = (tmp_path / "o.md").read_text()
    assert all(title in text for title in ("## Links", "## Training", "## Predicted and measured", "100.0%"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hydra.py", "o.jsonl", "o.md"]


def test_without_a_gpu_it_says_what_runs(tmp_path: Path) -> None:
    done = benchmark(tmp_path)
    assert done.returncode == 1
    assert "torch finds no GPU here: --device cpu --tiny" in done.stderr
