"""``metrics.jsonl``: one line a step, whatever stops and resumes in between."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ciuic_dist.monitor.spilling import Spilling
    from ciuic_dist.monitor.usage import TierUsage

_DAY = 86400


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimizer step showed. Losses are nats a token, memory bytes of this rank by tier."""

    step: int  # from 1
    loss: float
    tokens_per_s: float  # of all ranks
    lr: float
    grad_norm: float | None  # before clipping; None where it isn't measured
    memory: Mapping[str, TierUsage]
    seconds: float  # that the step took, on this rank
    samples: tuple[int, int] = (0, 0)  # of all that the run sees, the first of this step and the first after it
    spilling: Spilling | None = None  # of this rank in this step
    checkpoint_seconds: float | None = None  # that training has spent on a checkpoint since the last step's record
    validation_loss: float | None = None  # None on steps without validation
    nvme_bytes: float = 0.0  # written in this step to a host's drives, by all its ranks

    @property
    def nvme_bytes_per_day(self) -> float:
        """What a drive takes if all steps are like this one."""
        return self.nvme_bytes * _DAY / self.seconds


class MetricsFile:
    """Appends steps to ``path``, after dropping the lines that follow ``resumed_step`` (0: all).

    A step is in the file, past any kill of the process, when ``write`` returns.
    """

    def __init__(self, path: Path, *, resumed_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(path, resumed_step)
        self._file = path.open("ab", buffering=0)

    def write(self, metrics: StepMetrics) -> None:
        record: dict[str, Any] = {
            "step": metrics.step,
            "loss": _finite(metrics.loss),
            "tokens_per_s": _finite(metrics.tokens_per_s),
            "grad_norm": _finite(metrics.grad_norm),
            "lr": metrics.lr,
            "memory": {tier: asdict(usage) for tier, usage in metrics.memory.items()},
        }
        record["samples"] = list(metrics.samples)
        if metrics.checkpoint_seconds is not None:
            record["checkpoint_s"] = metrics.checkpoint_seconds
        if metrics.spilling is not None:
            record["spilling"] = _moves(metrics.spilling) | {"nvme_bytes_per_day": round(metrics.nvme_bytes_per_day)}
        if metrics.validation_loss is not None:
            record["validation_loss"] = _finite(metrics.validation_loss)
        line = memoryview(_line(record))
        while line:
            line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _moves(spilling: Spilling) -> dict[str, Any]:
    return {
        "bytes": {name: link.bytes for name, link in spilling.links.items()},
        "stall_seconds": spilling.stall_seconds,
        "hit_rate": spilling.hit_rate,
        "faults": spilling.faults,
        "unforeseen": spilling.unforeseen,
        "guesses": spilling.guesses,
        "guess_rate": spilling.guess_rate,
    }


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file, in order; a line that a crash left half-written is passed over.

    So is one that was damaged so far that it has no step or no loss. A value that was not finite is None.
    """
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int) and "loss" in record:
                yield record


def _keep_until(path: Path, step: int) -> None:
    """Rewrite ``path`` without later steps and broken lines; the old file stays until the new one is whole."""
    if not path.exists():
        return
    draft = path.with_name(path.name + ".partial")
    with draft.open("wb") as file:
        file.writelines(_line(record) for record in read(path) if record["step"] <= step)
    draft.replace(path)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _finite(value: float | None) -> float | None:
    # JSON has no NaN or infinity, and a diverged run's file should still be JSON.
    return value if value is not None and math.isfinite(value) else None
