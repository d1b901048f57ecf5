"""The checkpoints' benchmark runs from end to end, every way that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(folder: Path, ways: str) -> list[dict[str, Any]]:
    """What the benchmark recorded; it leaves nothing else in the folder."""
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--tiny", "--seconds", "200", "--ways", ways]
    done = subprocess.run(
        [*command, "--folder", str(folder), "--out", str(folder / "o")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in folder.iterdir()} == {"o.jsonl", "o.md"}
    assert "failed" not in done.stdout
    return [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_ours_beside_what_torch_has(tmp_path: Path) -> None:
    lines = benchmark(tmp_path, "ours,ours-within,torch.save,dcp-async")
    kinds = ["configuration", "codec", "limit", *["trial"] * 4, *["summary"] * 4]
    assert [line["kind"] for line in lines] == kinds
    for trial in lines[3:7]:
        assert trial["off"] == 0.0
        assert trial["bytes"] > 12 * trial["parameters"]  # of fp32 and Adam's two moments
        (save,) = trial["saves"]
        assert 0 < save["stall"] <= save["durable"]
    assert (tmp_path / "o.md").read_text().count("| the same |") == 4


@pytest.mark.slow
def test_deepspeed_and_dcp(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", exc_type=ImportError)
    assert [line.get("off") for line in benchmark(tmp_path, "dcp,deepspeed") if line["kind"] == "trial"] == [0.0, 0.0]
