"""What the benchmark of the frontier makes of measurements."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.frontier import report
from benchmarks.frontier.__main__ import arguments
from benchmarks.frontier.cases import Planned, of_peers
from benchmarks.frontier.measured import Measured
from benchmarks.frontier.results import Point, best_within, different, frontier, points, verdicts
from benchmarks.measure import machine
from benchmarks.measure.record import record
from benchmarks.measure.setting import Setting
from benchmarks.spill.results import Trial

SETTING = Setting(
    model="llama", size="tiny", dtype="fp32", device="cpu", ranks=2, hosts="1", batch=4, sequence=25, steps=2, warmup=2
)


def point(case: str, memory: float, speed: float, engine: str = "ours") -> Point:
    return Point(engine, case, 1, memory, speed, speed, speed, of_limit=None, loss_off=None)


OURS = [point("ours", 40, 10.0), point("ours, 50%", 20, 9.0), point("ours, 75%", 30, 8.0)]


@pytest.mark.parametrize(
    ("limit", "best"), [(19, None), (20, "ours, 50%"), (35, "ours, 50%"), (40, "ours"), (99, "ours")]
)
def test_a_limit_allows_the_quickest_of_what_fits_it(limit: float, best: str | None) -> None:
    found = best_within(OURS, limit)
    assert (found and found.case) == best


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.integers(0, 10))
def test_the_steps_of_the_picture_are_the_best_within_each_limit(made: list[tuple[int, int]], limit: int) -> None:
    found = [point("ours", memory, speed) for memory, speed in made]
    best = best_within(found, limit)
    reached = [speed for memory, speed in frontier(found) if memory <= limit]
    assert (reached[-1] if reached else None) == (best and best.tokens_per_second)


def test_each_peer_is_compared_at_its_own_memory() -> None:
    peers = [point("ddp", 50, 8.0, "ddp"), point("fsdp2", 25, 12.0, "fsdp2"), point("small", 10, 1.0, "deepspeed-nvme")]
    found = verdicts([point("plain", 5, 5.0, "plain"), *OURS, *peers])
    assert [each.ours and each.ours.case for each in found] == ["ours", "ours, 50%", None]
    assert [each.times for each in found] == [1.25, 0.75, None]
    lines = report.compared(found).splitlines()
    assert lines[0] == "* at ddp's memory (0 MB, 8.0 tokens/s) ours has 10.0 tokens/s: 1.25 times"
    assert "none of ours" in lines[2]
    assert lines[3] == "* at or above 1 of 3"


def some_trials() -> list[Trial]:
    """The machine gets slower from one repetition to the next, so that only ratios within one are right."""
    speeds = {"plain": (10.0, 2.0, 5.0), "ours": (18.0, 3.6, 9.0), "ddp": (8.0, 1.6, 4.0)}
    return [
        Trial(
            case,
            case,
            repetition,
            tokens_per_second=speeds[case][repetition],
            losses=[2.0, 2.5 if case != "ddp" else 2.5 - 2**-12],
            memory=30 + repetition,
            baseline=10,
        )
        for repetition in range(3)
        for case in speeds
    ]


def test_medians_are_taken_and_what_libraries_take_is_left_out() -> None:
    plain, ours, ddp = points([*some_trials(), Trial("fsdp2", "fsdp2", error="no")], ranks=2)
    assert (ours.tokens_per_second, ours.slowest, ours.quickest, ours.runs) == (9.0, 3.6, 18.0, 3)
    assert ours.memory == 21
    assert (plain.of_limit, ours.of_limit) == (0.5, 0.9)
    assert (ours.loss_off, ddp.loss_off) == (0.0, 2**-12)


def test_losses_that_are_not_plain_pytorchs_are_named() -> None:
    trials = some_trials()
    assert different(points(trials, 2)) == []
    trials[4] = replace(trials[4], losses=[2.0, 2.51])
    trials[5] = replace(trials[5], losses=[float("nan"), 2.5])
    assert different(points(trials, 2)) == ["ours", "ddp"]


def test_without_plain_pytorch_there_is_nothing_to_compare_with() -> None:
    found = points([trial for trial in some_trials() if trial.case != "plain"], 2)
    assert [each.of_limit for each in found] == [None, None]
    assert [each.loss_off for each in found] == [None, None]


def test_names_say_the_engine_and_whether_activations_are_recomputed() -> None:
    cases = list(of_peers(["ours", "deepspeed-3", "fsdp2-no-reshard-recomputed"], "/f"))
    assert [(case.engine, case.checkpointing) for case in cases] == [("deepspeed-3", False), ("fsdp2-no-reshard", True)]


def test_what_was_recorded_is_reported_again(tmp_path: Path) -> None:
    plans = [Planned("ours, 20%", 10**6, error="BudgetError: too | little")]
    trials = [*some_trials(), Trial("fsdp2", "fsdp2", error="Traceback\nValueError: no\n")]
    about = machine.describe()
    lines = tmp_path / "a.jsonl"
    record(lines, "configuration", {"setting": asdict(SETTING), "repetitions": 3, "machine": about})
    record(lines, "baseline", {"engine": "deepspeed-cpu", "bytes": 1})
    for plan in plans:
        record(lines, "plan", asdict(plan))
    for trial in trials:
        record(lines, "trial", asdict(trial))
    read = Measured.read(lines)
    assert read.plans == plans
    assert read.trials == trials
    text = report.text(read.setting, read.machine, read.plans, read.trials)
    assert text == report.text(SETTING, json.loads(json.dumps(about)), plans, trials)
    assert "| ours, 20% | 1 | refused: BudgetError: too / little |" in text
    assert "| fsdp2 | failed: ValueError: no |" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--cases ours,fsdp3", "there is no case fsdp3: --cases takes ours, plain, ddp"),
        ("--batch 3", "can't be divided among the ranks"),
        ("--repetitions 0", "at least 1"),
        ("--warmup 1", "divided after the second step"),
        ("--fractions 0.5,0", "above 0"),
        ("--folder /nowhere", "there is no /nowhere"),
        ("--draw /nowhere", "there is no /nowhere"),
    ],
)
def test_a_wrong_command_is_refused_at_once(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["frontier", *command.split()])
    with pytest.raises(SystemExit):
        arguments()
    assert message in capsys.readouterr().err
