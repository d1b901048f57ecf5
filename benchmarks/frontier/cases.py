"""What is trained by whom: peers in each of their ways of saving memory, ours by a plan for each budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.spill import case

OURS: Final = "ours"
PLAIN: Final = "plain"
PEERS: Final = (
    "ddp",
    "fsdp2",
    "fsdp2-no-reshard",
    "fsdp2-offload",
    "deepspeed-1",
    "deepspeed-2",
    "deepspeed-3",
    "deepspeed-cpu",
    "deepspeed-nvme",
)
RECOMPUTED: Final = "-recomputed"
"""The same engine with activation checkpointing: its name ends in this."""
NAMES: Final = (OURS, PLAIN, *(name + way for name in PEERS for way in ("", RECOMPUTED)))


@dataclass(frozen=True, slots=True)
class Case(case.Case):
    """`checkpointing`: every block computes its activations again; `plan` is ours, as JSON."""

    checkpointing: bool = False
    plan: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner says to a budget of `device` bytes a rank, None all there is: a plan (JSON), or why not."""

    case: str
    device: int | None
    plan: dict[str, Any] | None = None
    error: str = ""


def of_peers(names: Sequence[str], folder: str) -> Iterator[Case]:
    """A case for each of `names` that isn't ours."""
    for name in names:
        if name != OURS:
            engine = name.removesuffix(RECOMPUTED)
            yield Case(name, engine, folder, checkpointing=name != engine)
