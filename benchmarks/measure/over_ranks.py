"""From what each rank measured to one figure. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure.memory import Sample


def mean_losses(losses: Sequence[Sequence[float]]) -> list[float]:
    """Of each step, over the ranks."""
    return [sum(step) / len(losses) for step in zip(*losses, strict=True)]


def peak_of_sum(series: Sequence[Sequence[Sample]]) -> int:
    """Largest sum over the processes, each at its latest sample, at any time."""
    latest = [0] * len(series)
    peak = 0
    moments = sorted((when, process, size) for process, samples in enumerate(series) for when, size in samples)
    for _, process, size in moments:
        latest[process] = size
        peak = max(peak, sum(latest))
    return peak
