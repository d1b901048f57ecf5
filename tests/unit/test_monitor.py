from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ciuic_dist.monitor import metrics
from ciuic_dist.monitor.expected import Expected, compared
from ciuic_dist.monitor.metrics import MetricsFile, StepMetrics
from ciuic_dist.monitor.plots import plot_losses
from ciuic_dist.monitor.progress import Progress
from ciuic_dist.monitor.spilling import LinkStats, Spilling
from ciuic_dist.monitor.usage import TierUsage
from tests.damage import damages

if TYPE_CHECKING:
    from pathlib import Path


def step_metrics(step: int, *, loss: float | None = None, validation_loss: float | None = None) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=5.0 / step if loss is None else loss,
        tokens_per_s=1234.5,
        lr=1e-3,
        grad_norm=0.5,
        memory={"device": TierUsage(used=3 << 20, peak=5 << 30, budget=None)},
        seconds=2.0,
        samples=(12 * (step - 1), 12 * step),
        checkpoint_seconds=0.125 if step == 2 else None,
        validation_loss=validation_loss,
    )


MOVED = Spilling(
    links={"device->nvme": LinkStats(3 << 20, 4, 0.5), "nvme->device": LinkStats(1 << 20, 1, 0.1)},
    stall_seconds=0.25,
    accesses=8,
    hits=6,
    faults=2,
    steps=1,
    guesses=8,
    right=2,
)


def write_steps(path: Path, steps: range, *, resumed_step: int = 0) -> None:
    with MetricsFile(path, resumed_step=resumed_step) as file:
        for step in steps:
            file.write(step_metrics(step))


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


# --- metrics.jsonl -------------------------------------------------------------------------------


def test_a_line_holds_what_a_step_showed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.write(step_metrics(1))
        file.write(step_metrics(2, validation_loss=2.25))
        lines = path.read_text().splitlines()  # there before the file is closed
    expected: dict[str, Any] = {
        "step": 1,
        "loss": 5.0,
        "tokens_per_s": 1234.5,
        "grad_norm": 0.5,
        "lr": 1e-3,
        "memory": {"device": {"used": 3 << 20, "peak": 5 << 30, "budget": None}},
        "samples": [0, 12],
    }
    assert json.loads(lines[0]) == expected
    second = {"step": 2, "loss": 2.5, "samples": [12, 24], "checkpoint_s": 0.125, "validation_loss": 2.25}
    assert json.loads(lines[1]) == expected | second


def test_a_resumed_run_has_one_line_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 8))
    write_steps(path, range(5, 10), resumed_step=4)
    assert steps_in(path) == list(range(1, 10))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_from_the_start_drops_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    write_steps(path, range(1, 3))
    assert steps_in(path) == [1, 2]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    path.write_bytes(path.read_bytes()[:-cut])  # without the newline, or without half of the line
    whole = [1, 2, 3] if cut == 1 else [1, 2]
    assert [record["step"] for record in metrics.read(path)] == whole
    write_steps(path, range(len(whole) + 1, 6), resumed_step=len(whole))
    assert steps_in(path) == [1, 2, 3, 4, 5]


def test_values_that_are_not_finite_stay_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.write(step_metrics(1, loss=math.nan, validation_loss=math.inf))
    (record,) = metrics.read(path)
    assert record["loss"] is None
    assert record["validation_loss"] is None
    assert "NaN" not in path.read_text()


# --- progress ------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_a_plain_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(25, stream=stream, clock=clock) as progress:
        for step in range(1, 26):
            clock.now += 2.0
            progress.update(step_metrics(step, validation_loss=2.25 if step == 3 else None))
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/25", "6/25", "11/25", "16/25", "21/25", "25/25"]
    assert lines[1] == (
        "step 6/25  loss 0.8333  validation 2.2500  1,234 tokens/s  device 3.00 MiB (peak 5.00 GiB)  0:00:38 left"
    )
    assert "validation" not in lines[0]
    assert "\x1b" not in stream.getvalue()


def test_what_spilled_is_recorded_and_shown(tmp_path: Path) -> None:
    spilled, stream = replace(step_metrics(1), spilling=MOVED, nvme_bytes=3 << 20), io.StringIO()
    with MetricsFile(tmp_path / "metrics.jsonl") as file, Progress(1, stream=stream) as progress:
        file.write(spilled)
        progress.update(spilled)
    [record] = metrics.read(tmp_path / "metrics.jsonl")
    assert record["spilling"] == {
        "bytes": {"device->nvme": 3 << 20, "nvme->device": 1 << 20},
        "stall_seconds": 0.25,
        "hit_rate": 0.75,
        "faults": 2,
        "unforeseen": 0,
        "guesses": 8,
        "guess_rate": 0.25,
        "nvme_bytes_per_day": (3 << 20) * 43200,
    }
    assert "  up 1.00 MiB  down 3.00 MiB  3.00 MiB written a step, 126.56 GiB a day" in stream.getvalue()


def test_a_later_look_has_what_moved_since() -> None:
    later = replace(MOVED, links={**MOVED.links, "device->nvme": LinkStats(5 << 20, 6, 0.75)}, steps=3, faults=7)
    since = later.since(MOVED)
    assert since.links == {"device->nvme": LinkStats(2 << 20, 2, 0.25), "nvme->device": LinkStats(0, 0, 0.0)}
    assert (since.steps, since.faults, since.accesses, since.hit_rate) == (2, 5, 0, 1.0)
    assert (since.guesses, since.guess_rate) == (0, 1.0)
    assert since.nvme_bytes_per_step == 1 << 20


def test_time_left_counts_only_the_steps_of_this_run() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(30, first_step=10, stream=stream, clock=clock) as progress:
        clock.now += 6.0
        progress.update(step_metrics(12))
    assert stream.getvalue().endswith("0:00:54 left\n")


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with Progress(3, stream=stream) as progress:
        for step in (1, 2, 3):
            progress.update(step_metrics(step))
    shown = stream.getvalue()
    assert "\x1b[" in shown
    for part in ("3/3", "loss 1.6667", "1,234 tokens/s", "peak 5.00 GiB", "0:00:00 left"):
        assert part in shown


# --- the plot ------------------------------------------------------------------------------------


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


@pytest.mark.parametrize("steps", [0, 1, 40])
def test_the_plot_is_a_picture_of_any_run(tmp_path: Path, steps: int) -> None:
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step in range(1, steps + 1):
            validation = 3.0 if step % 10 == 0 else None
            file.write(step_metrics(step, loss=math.nan if step == 7 else None, validation_loss=validation))
    plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert png_size(tmp_path / "loss.png") == (960, 600)
    assert not list(tmp_path.glob("*.partial"))


def test_the_plot_shows_training_and_validation(tmp_path: Path) -> None:
    pictures = []
    for validation_loss in (None, 3.0):
        folder = tmp_path / "run"
        with MetricsFile(folder / "metrics.jsonl") as file:
            for step in range(1, 6):
                file.write(step_metrics(step, validation_loss=validation_loss))
        plot_losses(folder / "metrics.jsonl", folder / "loss.png")
        pictures.append((folder / "loss.png").read_bytes())
    assert pictures[0] != pictures[1]


# --- predicted and measured ----------------------------------------------------------------------

EXPECTED = Expected(
    tokens=1000, seconds=0.5, stalls=0.125, peak={"device": 10 << 20, "nvme": 6 << 20}, up=4 << 20, down=2 << 20
)


def record(seconds: float, device: int, nvme: int | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"tokens_per_s": 1000 / seconds, "memory": {"device": {"peak": device}}}
    if nvme is not None:
        made["memory"]["nvme"] = {"peak": nvme}
        made["spilling"] = {
            "bytes": {"nvme->device": 3 << 20, "host->device": 1 << 20, "device->nvme": 1 << 20, "nvme->host": 5},
            "stall_seconds": seconds / 2,
        }
    return made


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    rows = compared(EXPECTED, [record(0.25, 8 << 20, 3 << 20), record(1.0, 9 << 20, 4 << 20)] * 2, None)
    assert [(row.name, row.predicted, row.measured) for row in rows] == [
        ("step", 0.5, 0.625),
        ("peak on device", 10 << 20, 9 << 20),
        ("peak on nvme", 6 << 20, 4 << 20),
        ("stalls", 0.125, 0.3125),
        ("moved up", 4 << 20, 4 << 20),
        ("moved down", 2 << 20, 1 << 20),
    ]
    assert str(rows[0]).split() == ["step", "500.0", "ms", "625.0", "ms", "-20.0%"]
    assert str(rows[1]).split() == ["peak", "on", "device", "10.00", "MiB", "9.00", "MiB", "+11.1%"]


def test_a_peak_without_its_activations_is_not_compared() -> None:
    steps = [record(0.5, 4 << 20)]
    assert [row.name for row in compared(EXPECTED, steps, None)] == ["step", "peak on nvme"]
    device = next(row for row in compared(EXPECTED, steps, 5 << 20) if row.name == "peak on device")
    assert device.measured == 9 << 20
    assert compared(EXPECTED, [], None) == []


def test_the_display_says_what_the_plan_expected() -> None:
    stream = io.StringIO()
    with Progress(1, stream=stream) as progress:
        progress.update(replace(step_metrics(1), spilling=MOVED), EXPECTED)
    shown = stream.getvalue()
    assert "1,234 tokens/s (plan 2,000)" in shown
    assert "device 3.00 MiB (peak 5.00 GiB, plan 10.00 MiB)" in shown
    assert "up 1.00 MiB (plan 4.00 MiB)  down 3.00 MiB (plan 2.00 MiB)" in shown
    assert "stalls 250.0 ms (plan 125.0 ms)" in shown


def test_a_damaged_file_is_gone_on_with_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for number in range(1, 4):
            file.write(step_metrics(number))
    for number, _ in enumerate(damages(path, 400)):
        MetricsFile(path, resumed_step=2).close()
        assert all(isinstance(record["loss"], float) for record in metrics.read(path))
        if number % 40 == 0:
            plot_losses(path, tmp_path / "loss.png")
