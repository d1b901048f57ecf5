"""The engines' benchmark runs, and says which rank failed where one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.engines", "--reps", "1", "--steps", "1", "--sequence", "16"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_ours_beside_plain(tmp_path: Path) -> None:
    done = benchmark(
        "--size",
        "tiny",
        "--engines",
        "plain,ours",
        "--out",
        str(tmp_path / "o.jsonl"),
        "--plot",
        str(tmp_path / "o.png"),
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["configuration", "run", "run", "summary", "summary"]
    plain, ours = lines[1:3]
    assert (plain["engine"], ours["engine"]) == ("plain", "ours")
    assert len(ours["losses"]) == 4
    assert max(abs(a - b) for a, b in zip(plain["losses"], ours["losses"], strict=True)) < 1e-5
    assert ours["parameters"] * 16 < ours["memory"] < 2 * ours["peak_rss"]
    assert "| ours |" in done.stdout
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_is_named_and_ends_in_an_error() -> None:
    done = benchmark("--size", "huge", "--engines", "plain")
    assert done.returncode == 1
    assert "rank 0 ended with code 1" in done.stderr
    assert "| plain | failed: " in done.stdout
    assert "there is no llama size huge" in done.stdout


def test_a_run_that_takes_too_long_is_stopped() -> None:
    done = benchmark("--size", "tiny", "--engines", "ours", "--limit", "0.5")
    assert done.returncode == 1
    assert "the ranks were not done after 0.5 s" in done.stdout
