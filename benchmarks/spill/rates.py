"""What drive and memory can do while all ranks use them."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from benchmarks.spill.bound import Rates
from ciuic_dist.estimate.drive import measure_drive

_COPIED: Final = 64 << 20  # bytes


def _copying() -> float:
    source, target = torch.ones(_COPIED, dtype=torch.uint8), torch.ones(_COPIED, dtype=torch.uint8)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(4):
        target.copy_(source)
    return 4 * _COPIED / (time.perf_counter() - began)


def main(folder: str, page_bytes: str, nbytes: str, result: str) -> None:
    """Write this rank's rates to `result`."""
    dist.init_process_group("gloo")
    drive = measure_drive(Path(folder), int(page_bytes), int(nbytes))
    rates = Rates(drive.read, drive.write, drive.both, _copying())
    Path(result).write_text(json.dumps(asdict(rates)), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
