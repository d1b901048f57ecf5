"""What figures depend on beside the code: the machine, the versions, and who else is using it."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "deepspeed")


def describe() -> dict[str, Any]:
    """Processor, cores that may be used, bytes of memory, kernel, versions and the time (UTC)."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def in_words(about: dict[str, Any]) -> str:
    """What `describe` found, as two points of a list."""
    versions = ", ".join(f"{name} {about[name]}" for name in ("python", *_PACKAGES))
    return f"""\
* {about["processor"]}, {about["cores"]} cores, {about["memory"] / 2**30:.0f} GiB, Linux {about["kernel"]}
* {versions}; {about["date"]}"""


def memory() -> int:
    """Bytes of RAM."""
    return int(_field("/proc/meminfo", "MemTotal").split()[0]) * 1024


@contextmanager
def watched() -> Iterator[list[float]]:
    """At its end the list has one number: the cores that other processes kept busy meanwhile."""
    cores: list[float] = []
    began, others = time.monotonic(), _others_seconds()
    yield cores
    cores.append(round((_others_seconds() - others) / (time.monotonic() - began), 3))


def _others_seconds() -> float:
    """Processor seconds used on this machine by other processes than this and its ended children, since it started."""
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # without idle and waiting for input
    mine = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return busy / os.sysconf("SC_CLK_TCK") - sum(usage.ru_utime + usage.ru_stime for usage in mine)


def _field(file: str, key: str) -> str:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
