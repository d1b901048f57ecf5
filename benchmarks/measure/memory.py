"""How much memory processes take: their PSS, in which a page that n of them map counts one n-th for each."""

from __future__ import annotations

import resource
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

Sample = tuple[float, int]  # seconds on the clock that all processes of a machine share, bytes
_INTERVAL = 0.02  # seconds


class PssSampler:
    """Samples this process's PSS in a thread while the context lasts. The walk over all pages costs time."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        over = False
        while not over:
            self.samples.append((time.monotonic(), pss()))
            over = self._over.wait(_INTERVAL)


def pss() -> int:
    """Bytes of this process now."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def peak_rss() -> int:
    """Most bytes that this process ever had resident, shared pages in full."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
