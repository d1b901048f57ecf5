"""How much memory is left: the least of what the host and the control groups have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciuic_dist.comm.room import available

MIB = 1 << 20


def host(root: Path, files: dict[str, str]) -> Path:
    """A root folder with 100 MiB available and ``files``."""
    for name, text in {"proc/meminfo": "MemTotal: 204800 kB\nMemAvailable: 102400 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_2(folder: str, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {cache}\n"
    texts = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"sys/fs/cgroup/{folder}/{name}": text for name, text in texts.items()}


def version_1(folder: str, limit: int, used: int) -> dict[str, str]:
    texts = {"limit_in_bytes": str(limit), "usage_in_bytes": str(used), "stat": "total_inactive_file 0\n"}
    return {f"sys/fs/cgroup/memory/{folder}/memory.{name}": text for name, text in texts.items()}


JOB_2 = {"proc/self/cgroup": "0::/job/step\n"}
JOB_1 = {"proc/self/cgroup": "2:cpu:/\n4:memory:/job\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 100 * MIB),
        (JOB_2 | version_2("job/step", str(50 * MIB), 30 * MIB), 20 * MIB),
        (JOB_2 | version_2("job/step", str(50 * MIB), 30 * MIB, cache=5 * MIB), 25 * MIB),
        (JOB_2 | version_2("job/step", "max", 30 * MIB), 100 * MIB),
        (JOB_2 | version_2("job/step", "max", 1) | version_2("job", str(9 * MIB), 2 * MIB), 7 * MIB),
        (JOB_2 | version_2("", str(40 * MIB), 30 * MIB), 10 * MIB),
        (JOB_1 | version_1("job", 60 * MIB, 20 * MIB), 40 * MIB),
        (JOB_1 | version_1("job", 9223372036854771712, 20 * MIB), 100 * MIB),
        (JOB_1 | version_1("", 30 * MIB, 20 * MIB), 10 * MIB),
    ],
    ids=["none", "v2", "v2-cache", "v2-max", "v2-outer", "v2-container", "v1", "v1-unlimited", "v1-container"],
)
def test_the_least_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available(host(tmp_path, files)) == expected


def test_this_host_has_some() -> None:
    assert available() > 0
