"""What was predicted of a step, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from ciuic_dist.monitor.units import duration_text, size_text

_DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Expected:
    """One rank's step as a plan has it. Bytes and seconds."""

    tokens: int
    """Of all ranks."""
    seconds: float
    stalls: float
    peak: Mapping[str, int]
    """By tier."""
    up: float
    """To the device."""
    down: float


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. Bytes, or seconds where ``time`` says so."""

    name: str
    predicted: float
    measured: float
    time: bool

    def __str__(self) -> str:
        text = duration_text if self.time else size_text
        off = f"{self.predicted / self.measured - 1:+8.1%}" if self.measured and self.predicted else ""
        return f"  {self.name:<18}{text(self.predicted):>12}{text(self.measured):>12}{off}".rstrip()


def compared(expected: Expected, steps: Iterable[Mapping[str, Any]], activations: int | None) -> list[Row]:
    """What the records of ``metrics.jsonl`` say of what was expected; none without records. Medians, but for peaks.

    ``activations``: bytes that the records' peaks of the device lack; None where nobody knows, and the peak with it.
    """
    records = list(steps)
    if not records:
        return []
    spilling = [record["spilling"] for record in records if "spilling" in record]
    rows = [Row("step", expected.seconds, median(expected.tokens / record["tokens_per_s"] for record in records), True)]
    rows += _peaks(expected, records, 0 if spilling else activations)
    if spilling:
        rows.append(Row("stalls", expected.stalls, median(moved["stall_seconds"] for moved in spilling), True))
        rows.append(Row("moved up", expected.up, median(moved_up(moved["bytes"]) for moved in spilling), False))
        rows.append(Row("moved down", expected.down, median(moved_down(moved["bytes"]) for moved in spilling), False))
    return [row for row in rows if row.predicted or row.measured]


def _peaks(expected: Expected, records: list[Mapping[str, Any]], beside: int | None) -> Iterator[Row]:
    for tier, predicted in expected.peak.items():
        measured = max((record["memory"].get(tier, {"peak": 0})["peak"] for record in records), default=0)
        if tier != _DEVICE:
            yield Row(f"peak on {tier}", predicted, measured, False)
        elif beside is not None:
            yield Row(f"peak on {tier}", predicted, measured + beside, False)


def moved_up(links: Mapping[str, int]) -> int:
    """Bytes to the device, of those over all links, such as "nvme->device"."""
    return sum(nbytes for link, nbytes in links.items() if link.endswith(f"->{_DEVICE}"))


def moved_down(links: Mapping[str, int]) -> int:
    """The same from it."""
    return sum(nbytes for link, nbytes in links.items() if link.startswith(f"{_DEVICE}->"))
