"""A limit of memory that the kernel enforces, page cache included: a memory cgroup of version 1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.measure.hosts import Host

_ROOT: Final = Path("/sys/fs/cgroup/memory")
_JOIN: Final = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
LEAN: Final = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 17)}
"""The C library gives back at once what is freed; else it keeps tens of MB, which nobody uses, in every process."""
_SWAP: Final = "memory.memsw.limit_in_bytes"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Processes started on `host` are in it."""

    path: Path

    @property
    def host(self) -> Host:
        """This machine, within the limit."""
        return Host("127.0.0.1", ("sh", "-c", _JOIN, str(self.path)), LEAN)

    @property
    def kills(self) -> int:
        """Processes that the kernel killed because the limit was reached."""
        lines = (self.path / "memory.oom_control").read_text(encoding="ascii").splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    @property
    def peak(self) -> int:
        """Most bytes ever charged."""
        return int((self.path / "memory.max_usage_in_bytes").read_text(encoding="ascii"))


def unavailable() -> str:
    """Why there can be no limit here; empty where there can."""
    if not (_ROOT / "memory.limit_in_bytes").exists():
        return f"there is no memory cgroup of version 1 at {_ROOT}"
    return "" if os.geteuid() == 0 else "only root can make a memory cgroup"


@contextmanager
def limited(nbytes: int) -> Iterator[Cgroup]:
    """A cgroup below this process's own that may use `nbytes` and no swap; its processes must be gone at the end."""
    path = _ROOT / _own() / f"spill-{os.getpid()}"
    path.mkdir()
    try:
        _write(path, "memory.swappiness", 0)
        _write(path, "memory.limit_in_bytes", nbytes)
        if (path / _SWAP).exists():
            _write(path, _SWAP, nbytes)
        yield Cgroup(path)
    finally:
        path.rmdir()


def _own() -> str:
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    return next(line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(",")).lstrip("/")


def _write(path: Path, name: str, value: int) -> None:
    (path / name).write_text(str(value), encoding="ascii")
