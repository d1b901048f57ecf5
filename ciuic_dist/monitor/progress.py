"""What rank 0 shows of a run: a live display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self, TextIO

from ciuic_dist.monitor.expected import moved_down, moved_up
from ciuic_dist.monitor.units import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from ciuic_dist.monitor.expected import Expected
    from ciuic_dist.monitor.metrics import StepMetrics
    from ciuic_dist.monitor.usage import TierUsage

_INTERVAL: Final = 10.0  # seconds between two plain lines


class Progress:
    """Shows loss, tokens/s, memory, traffic between tiers and time left as steps come in; a context manager.

    ``first_step`` is the number of steps done before (0, or the resumed step): time left is
    reckoned from the steps seen here. ``clock`` gives seconds.
    """

    def __init__(
        self,
        steps: int,
        *,
        first_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self._steps = steps
        self._first_step = first_step
        self._clock = clock
        self._begun = clock()
        self._validation_loss: float | None = None
        self._display = _Live(steps, first_step, stream) if stream.isatty() else _Lines(steps, stream, clock)

    def update(self, metrics: StepMetrics, expected: Expected | None = None) -> None:
        """Show a step, beside what a plan ``expected`` of it."""
        if metrics.validation_loss is not None:
            self._validation_loss = metrics.validation_loss
        parts = [f"loss {metrics.loss:.4f}"]
        if self._validation_loss is not None:
            parts.append(f"validation {self._validation_loss:.4f}")
        parts += [
            f"{metrics.tokens_per_s:,.0f} tokens/s{_speed(expected)}",
            *_memory(metrics.memory, expected),
            *_traffic(metrics, expected),
            *_waits(metrics, expected),
            *_wear(metrics),
            f"{self._time_left(metrics.step)} left",
        ]
        self._display.show(metrics.step, "  ".join(parts))

    def _time_left(self, step: int) -> timedelta:
        pace = (self._clock() - self._begun) / max(step - self._first_step, 1)
        return timedelta(seconds=round(pace * (self._steps - step)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._display.close()


class _Lines:
    """A line at the first step, at the last, and every ten seconds between."""

    def __init__(self, steps: int, stream: TextIO, clock: Callable[[], float]) -> None:
        self._steps = steps
        self._stream = stream
        self._clock = clock
        self._due = clock()

    def show(self, step: int, text: str) -> None:
        now = self._clock()
        if now < self._due and step < self._steps:
            return
        self._due = now + _INTERVAL
        self._stream.write(f"step {step}/{self._steps}  {text}\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class _Live:
    """A bar that is redrawn in place."""

    def __init__(self, steps: int, first_step: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress: RichProgress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=Console(file=stream),
            refresh_per_second=2,  # drawing takes the interpreter from the training thread
        )
        self._task: TaskID = self._progress.add_task("", total=steps, completed=first_step)
        self._progress.start()

    def show(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        self._progress.stop()


def _speed(expected: Expected | None) -> str:
    return "" if expected is None else f" (plan {expected.tokens / expected.seconds:,.0f})"


def _memory(tiers: Mapping[str, TierUsage], expected: Expected | None) -> list[str]:
    planned = {} if expected is None else expected.peak
    return [
        f"{tier} {size_text(usage.used)} (peak {size_text(usage.peak)}"
        + (f", plan {size_text(planned[tier])})" if tier in planned else ")")
        for tier, usage in tiers.items()
    ]


def _traffic(metrics: StepMetrics, expected: Expected | None) -> list[str]:
    """Between tiers in this step, where there is any."""
    if metrics.spilling is None:
        return []
    links = {name: link.bytes for name, link in metrics.spilling.links.items()}
    planned = (0.0, 0.0) if expected is None else (expected.up, expected.down)
    rows = zip(("up", "down"), (moved_up(links), moved_down(links)), planned, strict=True)
    return [
        f"{way} {size_text(measured)}" + (f" (plan {size_text(plan)})" if expected is not None else "")
        for way, measured, plan in rows
        if measured or plan
    ]


def _waits(metrics: StepMetrics, expected: Expected | None) -> list[str]:
    """Of transfers, where there are any."""
    if metrics.spilling is None or expected is None:
        return []
    return [f"stalls {duration_text(metrics.spilling.stall_seconds)} (plan {duration_text(expected.stalls)})"]


def _wear(metrics: StepMetrics) -> list[str]:
    """What a host's drives take, where they take anything."""
    if not metrics.nvme_bytes:
        return []
    step, day = round(metrics.nvme_bytes), round(metrics.nvme_bytes_per_day)
    return [f"{size_text(step)} written a step, {size_text(day)} a day"]
