"""The ways to save, by the names that tables have, and the engine that trains under each."""

from __future__ import annotations

from typing import Final

OURS: Final = "ours"
WITHIN: Final = "ours-within"
"""A budget, and the rest on the drive."""
TORCH_SAVE: Final = "torch.save"
DCP: Final = "dcp"
ASYNCHRONOUS: Final = "dcp-async"
DEEPSPEED: Final = "deepspeed"

ENGINES: Final = {
    OURS: "ours",
    WITHIN: "ours",
    TORCH_SAVE: "fsdp2",
    DCP: "fsdp2",
    ASYNCHRONOUS: "fsdp2",
    DEEPSPEED: "deepspeed",
}
