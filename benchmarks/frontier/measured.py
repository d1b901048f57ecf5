"""All that one run of the benchmark measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.frontier.cases import Planned
from benchmarks.measure.setting import Setting
from benchmarks.spill.results import Trial


@dataclass(slots=True)
class Measured:
    """What there is to report, as it comes."""

    setting: Setting
    machine: dict[str, Any]
    plans: list[Planned] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """From JSON lines that a run left."""
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            by_kind.setdefault(line.pop("kind"), []).append(line)
        first = by_kind["configuration"][0]
        return cls(
            Setting(**first["setting"]),
            first["machine"],
            [Planned(**plan) for plan in by_kind.get("plan", ())],
            [Trial(**trial) for trial in by_kind.get("trial", ())],
        )
