"""What the checkpoints' benchmark makes of measurements."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.checkpoint import drive, report
from benchmarks.checkpoint.__main__ import arguments
from benchmarks.checkpoint.drive import Limit
from benchmarks.checkpoint.results import Save, Trial, figures, problem, summarize
from ciuic_dist.compress.worth import CodecRates

LIMITS = [Limit(write=100.0, read=200.0, direct=True), Limit(write=50.0, read=100.0, direct=True)]


def rank_report(rank: int) -> dict[str, object]:
    saved = {
        "stall": 0.25,
        "stood": 0.25 + rank,
        "finished": 4.0 - rank,
        "steps": [2.0, 3.0 + rank],
        "synced": 0.0 if rank else 0.25,
    }
    return {
        "parameters": 7,
        "steps": {"step_seconds": [2.0, 1.0, 9.0], "losses": [1.0], "memory": [[0.0, 10]]},
        "saved": [saved],
        "bytes": 0 if rank else 84,
        "loads": [1.0 + rank, 3.0 - rank],
        "straight": [0.0 if rank else 1.5] * 2,
        "off": 0.125 * rank,
        "saving": [[0.0, 10 + 5 * rank]],
        "loading": [[0.0, 12]],
    }


def test_a_trial_waits_for_the_slowest_rank() -> None:
    trial = Trial("ours", **figures([rank_report(0), rank_report(1)]))
    assert trial.saves == [Save(stall=1.5, slowed=0.75, durable=4.25)]
    assert (trial.bytes, trial.off) == (84, 0.125)
    assert (trial.loads, trial.straight) == ([2.0, 3.0], [1.5, 1.5])
    assert (trial.training, trial.saving, trial.loading) == (20, 25, 24)


def some_trials() -> list[Trial]:
    """The drive is half as quick in the second repetition, so that only fractions within one are right."""

    def trial(way: str, repetition: int, stall: float) -> Trial:
        slower = 1.0 + repetition
        saves = [Save(stall * slower, 0.0, 10.0 * slower)]
        memory = {"training": 100, "saving": 130, "loading": 90}
        loads = [5.0 * slower, 4.0 * slower, 10.0 * slower]
        straight = [load * part for load, part in zip(loads, (0.5, 1.0, 0.25), strict=True)]
        return Trial(way, repetition, "", 0.0, 7, [2.0], saves, 500, loads, straight, **memory)

    return [trial(way, repetition, stall) for repetition in range(2) for way, stall in (("ours", 1), ("dcp-async", 4))]


def test_fractions_of_the_drive_are_taken_beside_what_they_are_of() -> None:
    ours, asynchronous = summarize(some_trials(), LIMITS)
    assert (ours.of_write, ours.of_read) == (0.5, 0.5)
    assert (ours.load, ours.read) == (9.0, 56.25)
    assert (ours.stall, ours.longest, ours.of_step) == (1.5, 2.0, 0.75)
    assert (ours.to_async, asynchronous.to_async) == (0.25, 1.0)
    assert (ours.more_saving, ours.more_loading) == (30, 0)


def test_ours_must_run_and_load_what_it_saved() -> None:
    trials = some_trials()
    assert problem(trials) == ""
    assert problem([trials[0], replace(trials[1], off=1.0, error="no")]) == ""
    assert "off by 1.0e-01" in problem([replace(trials[0], off=0.1)])
    assert "ours failed: no" in problem([Trial("ours", error="no")])
    assert "ours-within failed: no" in problem([*trials, Trial("ours-within", error="no")])


def test_the_table_has_a_line_for_each_way_and_each_failure() -> None:
    trials = [*some_trials(), Trial("dcp", error="Traceback\nOSError: a | b")]
    lines = report.table(summarize(trials, LIMITS), trials).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ours", "| dcp-async", "| dcp"]
    assert len({line.count("|") for line in lines}) == 1
    assert "the same" in lines[2]
    assert "failed: OSError: a / b" in lines[4]


def test_the_drives_table_says_from_how_many_cores_on_compression_pays() -> None:
    lines = report.limits(LIMITS, CodecRates(encode=30.0, decode=80.0)).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:4]] == ["4 cores |", "2 cores |"]


def test_the_drive_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    limit = drive.measure(tmp_path, 17 << 20)
    assert limit.write > 0
    assert limit.read > 0
    assert not list(tmp_path.iterdir())


def test_files_of_any_size_are_read_to_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (0, 1, 4096, (4 << 20) + 5)
    files = [tmp_path / str(nbytes) for nbytes in sizes]
    for file in files:
        file.write_bytes(bytes(int(file.name)))
    counts: list[int] = []

    def counted(file: int, buffer: memoryview, offset: int) -> int:
        counts.append(os.preadv(file, [buffer], offset))
        return counts[-1]

    monkeypatch.setattr(drive, "_read", counted)
    assert drive.seconds_to_read(files) > 0
    assert sum(counts) == sum(sizes)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--ways ours,tar", "there is no way tar: --ways takes ours"),
        ("--batch 3", "can't be divided among the ranks"),
        ("--saves 0", "at least 1"),
        ("--budget much", "--budget much is no size"),
        ("--folder /nowhere", "there is no /nowhere"),
    ],
)
def test_a_wrong_command_is_refused_at_once(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["checkpoint", *command.split()])
    with pytest.raises(SystemExit):
        arguments()
    assert message in capsys.readouterr().err
