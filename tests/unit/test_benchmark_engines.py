"""What the engines' benchmark makes of measurements."""

from __future__ import annotations

import sys

import pytest

from benchmarks.engines.__main__ import arguments
from benchmarks.engines.report import table
from benchmarks.engines.results import Run, run_of, summarize
from benchmarks.measure.over_ranks import peak_of_sum
from benchmarks.measure.setting import Setting

SETTING = Setting(
    model="llama", size="tiny", dtype="fp32", device="cpu", ranks=2, hosts="1", batch=4, sequence=25, steps=3, warmup=0
)


def test_the_peak_of_a_host_is_that_of_the_sum_and_not_the_sum_of_peaks() -> None:
    assert peak_of_sum([[(0.0, 10), (2.0, 50), (3.0, 10)], [(1.0, 60), (1.5, 20), (4.0, 65)]]) == 75


def rank_report(loss: float, memory: int) -> dict[str, object]:
    seconds, losses = [0.5, 9.0, 0.25], [1.0, loss]
    samples = [[0.0, memory]]
    return {
        "steps": {"step_seconds": seconds, "losses": losses, "memory": samples},
        "peak_rss": memory + 1,
        "parameters": 7,
        "accelerator": "",
    }


@pytest.mark.parametrize(("hosts", "memory"), [(1, 70), (2, 40)])
def test_a_run_takes_the_median_step_the_mean_loss_and_the_fullest_host(hosts: int, memory: int) -> None:
    run = run_of("ours", 0, SETTING, [rank_report(2.0, 40), rank_report(4.0, 30)], hosts=hosts, others=0.0)
    assert run.tokens_per_second == 100 / 0.5
    assert run.losses == [1.0, 3.0]
    assert run.memory == memory
    assert run.peak_rss == 41


def some_runs() -> list[Run]:
    """The machine gets slower from one repetition to the next, so that only ratios within one are right."""
    speeds = {"plain": (10.0, 5.0, 1.0), "ours": (18.0, 9.0, 1.8), "ddp": (9.0, 4.5, 0.6)}
    memories = {"plain": 100, "ours": 150, "ddp": 200}
    losses = {"plain": 5.0, "ours": 5.0, "ddp": 5.5}
    return [
        Run(engine, repetition, speeds[engine][repetition], [1.0], [losses[engine]], memories[engine], 0)
        for repetition in range(3)
        for engine in speeds
    ]


def test_ratios_are_taken_within_a_repetition() -> None:
    _, ours, ddp = summarize(some_runs(), ranks=2)
    assert ours.tokens_per_second == 9.0
    assert ours.of_limit == pytest.approx(0.9)
    assert ddp.faster == pytest.approx(2.0)
    assert ddp.leaner == pytest.approx(0.75)
    assert ddp.loss_difference == pytest.approx(0.5)


def test_the_table_has_a_line_for_each_engine_the_limit_and_each_failure() -> None:
    runs = [*some_runs(), Run("fsdp2", 0, error="Traceback\nValueError: a | b\nTry c")]
    lines = table(summarize(runs, ranks=2), runs, SETTING).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| plain", "| ours", "| ddp", "| limit", "| fsdp2"]
    assert len({line.count("|") for line in lines}) == 1
    assert "90%" in lines[3]
    assert "2.00" in lines[4]
    assert "failed: ValueError: a / b" in lines[6]


def test_engines_without_plain_or_ours_have_nothing_to_compare_with() -> None:
    (ddp,) = summarize([run for run in some_runs() if run.engine == "ddp"], ranks=2)
    assert (ddp.of_limit, ddp.faster, ddp.leaner, ddp.loss_difference) == (None, None, None, None)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--engines ours,fsdp3", "there is no engine fsdp3: --engines takes plain"),
        ("--batch 3", "can't be divided among 2 ranks"),
        ("--ranks 3 --batch 3 --hosts 2", "even number of ranks"),
        ("--reps 0", "at least 1"),
        ("--ranks 0", "at least 1"),
        ("--sequence 1", "at least 2"),
    ],
)
def test_a_wrong_command_is_refused_at_once(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["engines", *command.split()])
    with pytest.raises(SystemExit):
        arguments()
    assert message in capsys.readouterr().err
