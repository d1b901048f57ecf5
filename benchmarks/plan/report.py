"""Predicted beside measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure.record import markdown, reason

PEAK_WITHIN = 0.03
STEP_WITHIN = 0.10


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: the ranks' mean; `error` where it failed. Bytes and seconds."""

    case: str
    predicted_peak: float = 0.0
    measured_peak: float = 0.0
    predicted_seconds: float = 0.0
    measured_seconds: float = 0.0
    slowest: float = 0.0
    quickest: float = 0.0
    probing: float = 0.0
    others: float = 0.0
    """Cores that other processes kept busy meanwhile."""
    error: str = ""

    @property
    def peak_error(self) -> float:
        """Of the prediction, as a part of what was measured."""
        return self.predicted_peak / self.measured_peak - 1

    @property
    def step_error(self) -> float:
        """The same of the seconds."""
        return self.predicted_seconds / self.measured_seconds - 1


def table(outcomes: Sequence[Outcome]) -> str:
    """A line a case, and how many are as close as they should be."""
    titles = [
        "case",
        "peak of a rank, MB: predicted",
        "measured",
        "off by",
        "step, s: predicted",
        "measured: median (min..max)",
        "off by",
        "measuring before, s",
    ]
    rows = [_row(outcome) for outcome in outcomes]
    done = [outcome for outcome in outcomes if not outcome.error]
    peaks = sum(abs(outcome.peak_error) <= PEAK_WITHIN for outcome in done)
    steps = sum(abs(outcome.step_error) <= STEP_WITHIN for outcome in done)
    return (
        f"{markdown(titles, rows)}\n\n"
        f"* peak within {PEAK_WITHIN:.0%}: {peaks} of {len(outcomes)}\n"
        f"* step time within {STEP_WITHIN:.0%}: {steps} of {len(outcomes)}"
    )


def _row(outcome: Outcome) -> list[str]:
    if outcome.error:
        return [f"{outcome.case}: failed: {reason(outcome.error)}"]
    return [
        outcome.case,
        f"{outcome.predicted_peak / 1e6:.0f}",
        f"{outcome.measured_peak / 1e6:.0f}",
        f"{outcome.peak_error:+.1%}",
        f"{outcome.predicted_seconds:.3f}",
        f"{outcome.measured_seconds:.3f} ({outcome.quickest:.3f}..{outcome.slowest:.3f})",
        f"{outcome.step_error:+.1%}",
        f"{outcome.probing:.1f}",
    ]
