"""How every process of this benchmark begins."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from pathlib import Path

import ciuic_dist as cd


def begin() -> None:
    """Join, alone. Where the host has no memory left, it is this process that the kernel ends."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with suppress(OSError):  # sandboxes without it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    cd.init()
