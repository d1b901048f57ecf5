"""What the device is."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu.begin import begin
from ciuic_dist.comm.groups import device
from ciuic_dist.comm.room import available


@dataclass(frozen=True, slots=True)
class Facts:
    """Bytes: `free` of the device's `memory`, `host` of the host's, `locked` that may be registered (-1: any)."""

    name: str
    memory: int
    free: int
    host: int
    locked: int
    capability: str = ""
    driver: str = ""
    cuda: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def facts() -> Facts:
    """Of this process's device."""
    where, host = device(), available()
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    set_here = {key: value for key, value in os.environ.items() if key.startswith(("PYTORCH_", "CUDA_", "NCCL_"))}
    if where.type != "cuda":
        return Facts(where.type, host, host, host, locked, environment=set_here)
    free, total = torch.accelerator.get_memory_info(where)
    properties = torch.cuda.get_device_properties(where)
    return Facts(
        properties.name,
        total,
        free,
        host,
        locked,
        f"{properties.major}.{properties.minor}",
        _driver(),
        str(torch.version.cuda),
        set_here,
    )


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip().partition("\n")[0] or "unknown"


def main(result: str) -> None:
    """Write the facts to `result`."""
    begin()
    Path(result).write_text(json.dumps(asdict(facts())), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
