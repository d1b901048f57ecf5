"""What the spill benchmark makes of measurements."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measure.setting import Setting
from benchmarks.spill import report
from benchmarks.spill.__main__ import arguments
from benchmarks.spill.bound import Moves, Rates
from benchmarks.spill.results import Trial, figures, summarize, unequal
from benchmarks.spill.search import largest

SETTING = Setting(
    model="llama", size="tiny", dtype="fp32", device="cpu", ranks=2, hosts="1", batch=4, sequence=25, steps=2, warmup=1
)
RATES = Rates(read=100.0, write=50.0, both=120.0, copy=1e9)


def test_what_fits_need_not_move() -> None:
    assert Moves.least(parameters=10, room=120) == Moves(read=0, written=0)


def test_state_moves_once_and_parameters_twice_for_reading() -> None:
    assert Moves.least(parameters=10, room=100) == Moves(read=20, written=20)
    assert Moves.least(parameters=10, room=40) == Moves(read=80, written=80)
    assert Moves.least(parameters=10, room=0) == Moves(read=160, written=120)


def test_the_bound_is_the_longest_of_computing_and_moving() -> None:
    moves = Moves(read=300, written=100)
    assert moves.seconds(RATES, computing=10.0) == 10.0
    assert moves.seconds(RATES, computing=1.0) == pytest.approx(400 / 120)
    assert moves.seconds(replace(RATES, read=60.0), computing=1.0) == pytest.approx(5.0)
    assert moves.seconds(replace(RATES, write=20.0), computing=1.0) == pytest.approx(5.0)


@given(limit=st.integers(0, 300), first=st.integers(1, 50), most=st.integers(1, 200))
def test_the_search_finds_the_last_size_that_fits(limit: int, first: int, most: int) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        assert 1 <= size <= most
        asked.append(size)
        return size <= limit

    assert largest(fits, first, most, tolerance=0.0) == min(limit, most)
    assert len(set(asked)) == len(asked)
    rough = largest(fits, first, most, tolerance=0.1)
    assert rough <= min(limit, most) <= rough + max(1, 0.1 * rough)


def rank_report(loss: float, *, read: int, spilled: bool) -> dict[str, object]:
    moves = {
        "transient": read,
        "page_bytes": 4096,
        "links": {"nvme->device": read},
        "stall_seconds": read / 10,
        "accesses": 10,
        "hits": 9,
        "faults": 1,
        "unforeseen": 0,
    }
    return {
        "parameters": 7,
        "baseline": 5,
        "steps": {"step_seconds": [0.5, 1.5], "losses": [1.0, loss], "memory": [[0.0, 30]]},
        "peak_rss": 40,
        "disk_read": read,
        "disk_written": 0,
        "device_peak": 3 * read,
        "spilled": moves if spilled else None,
    }


def test_ranks_are_added_up_and_counts_are_of_one_step() -> None:
    reports = [rank_report(2.0, read=20, spilled=True), rank_report(4.0, read=40, spilled=True)]
    trial = Trial("budgets", "33%", **figures(SETTING, reports))
    assert trial.tokens_per_second == 100.0
    assert trial.losses == [1.0, 3.0]
    assert (trial.memory, trial.baseline, trial.disk_read) == (60, 10, 30.0)
    assert (trial.device_peak, trial.transient, trial.stall_seconds) == (120, 40, 2.0)
    assert (trial.links, trial.faults, trial.hit_rate) == ({"nvme->device": 30.0}, 2, 0.9)


def test_without_a_budget_nothing_is_spilled() -> None:
    trial = Trial("peers", "plain", **figures(SETTING, [rank_report(2.0, read=0, spilled=False)]))
    assert (trial.links, trial.hit_rate, trial.page_bytes) == ({}, 1.0, 0)


def some_trials() -> list[Trial]:
    """The machine gets slower from one repetition to the next, so that only ratios within one are right."""
    speeds = {"unspilled": (10.0, 5.0, 1.0), "33%": (9.0, 4.5, 0.9)}
    return [
        Trial(
            "budgets",
            case,
            repetition,
            tokens_per_second=speeds[case][repetition],
            step_seconds=[100 / speeds[case][repetition]],
            losses=[2.5],
            parameters=100,
            device_budget=None if case == "unspilled" else 250,
            transient=50,
        )
        for repetition in range(3)
        for case in speeds
    ]


def test_ratios_are_taken_within_a_repetition() -> None:
    unspilled, third = summarize(some_trials(), 2, "unspilled", [RATES] * 3)
    assert unspilled.of_unspilled == unspilled.of_bound == 1.0
    assert third.of_unspilled == pytest.approx(0.9)
    # 400 of 1200 bytes fit: 800 are read and 800 written, in 16 s; computing takes 10, 20 and 100 s.
    assert third.bound == pytest.approx(20.0)
    assert third.of_bound == pytest.approx(0.9)


def test_the_drive_bounds_a_step_that_computes_quickly() -> None:
    trials = [trial for trial in some_trials() if trial.repetition == 0]
    _, third = summarize(trials, 2, "unspilled", [RATES])
    assert third.bound == pytest.approx(16.0)


def test_a_loss_that_differs_in_its_last_bit_is_found() -> None:
    trials = some_trials()
    assert unequal(trials) == []
    trials[1] = replace(trials[1], losses=[2.5 + 2**-50])
    assert unequal(trials) == ["33%"]
    assert unequal([*some_trials(), Trial("budgets", "20%", error="BudgetError: no")]) == []


def test_a_budget_that_is_refused_has_a_row_with_the_reason() -> None:
    trials = [*some_trials(), Trial("budgets", "20%", error="Traceback\nBudgetError: at least 9 | more\n")]
    lines = report.budgets(summarize(trials, 2, "unspilled", [RATES] * 3), trials).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| unspilled", "| 33%", "| 20%"]
    assert len({line.count("|") for line in lines}) == 1
    assert "90.0%" in lines[3]
    assert "failed: BudgetError: at least 9 / more" in lines[4]


def test_the_kernels_kill_is_told_before_what_other_ranks_said() -> None:
    killed = Trial("limited", "fsdp2", error="rank 1: connection reset", kills=1, limit=10**6)
    assert "killed by the kernel" in report.limited([killed])


def test_the_largest_model_is_compared_with_that_of_fsdp2() -> None:
    def trial(engine: str, layers: int, error: str = "") -> Trial:
        return Trial("largest", f"{engine}, {layers} layers", error=error, parameters=10 * layers, step_seconds=[1.0])

    found = [
        ("fsdp2", 4, [trial("fsdp2", 4), trial("fsdp2", 8, "MemoryError: no")]),
        ("ours", 16, [trial("ours", 8), trial("ours", 16)]),
    ]
    lines = report.largest(found, memory=2 << 30, most=16).splitlines()
    assert "8 layers: failed: MemoryError: no" in lines[2]
    assert "| ours | at least 16 |" in lines[3]
    assert "| 4.0 |" in lines[3]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--parts budgets,speed", "there is no part speed: --parts takes limits"),
        ("--repetitions 0", "at least 1"),
        ("--warmup 1", "divided after the second step"),
        ("--limit much", "is no size"),
        ("--fractions 0.5,2", "at most 1"),
        ("--folder /nowhere", "there is no /nowhere"),
    ],
)
def test_a_wrong_command_is_refused_at_once(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["spill", *command.split()])
    with pytest.raises(SystemExit):
        arguments()
    assert message in capsys.readouterr().err
