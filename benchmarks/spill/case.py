"""What one trial trains, and within what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ENGINES: Final = ("ours", "plain", "ddp", "fsdp2", "deepspeed-cpu", "deepspeed-nvme")
OPERATORS: Final = {"deepspeed-cpu": ("CPUAdamBuilder",), "deepspeed-nvme": ("CPUAdamBuilder", "AsyncIOBuilder")}
"""What an engine compiles before its first run."""


@dataclass(frozen=True, slots=True)
class Case:
    """`device` is the bytes that each rank of ours may use, None all there is; `folder` is for what spills to disk.

    `partitioned`: DeepSpeed makes the model in pieces, with values of its own, and never holds the whole.
    """

    name: str
    engine: str
    folder: str
    device: int | None = None
    partitioned: bool = False
