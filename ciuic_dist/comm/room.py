"""How much more memory this process could use: the host's, or less where a container or scheduler set a limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Bytes. ``root`` is where ``proc`` and ``sys`` are mounted."""
    meminfo = _fields(root / "proc/meminfo")
    return min([meminfo["MemAvailable:"] << 10, *_left_to_groups(root)])


def _left_to_groups(root: Path) -> Iterator[int]:
    """What is left to each control group that this process is in, nested ones and those around them."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, limit, usage, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            top = root / "sys/fs/cgroup/memory"
            limit, usage, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inner = top / path.lstrip("/")
        for folder in (inner, *(outer for outer in inner.parents if outer.is_relative_to(top))):
            if (folder / limit).exists() and (bound := (folder / limit).read_text().strip()) != "max":
                reclaimable = _fields(folder / "memory.stat").get(cache, 0)
                yield int(bound) - int((folder / usage).read_text()) + reclaimable


def _fields(path: Path) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
