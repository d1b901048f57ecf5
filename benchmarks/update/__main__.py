"""Compare where an update of spilled state may run, on the machines that there are: python -m benchmarks.update."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

import torch

from benchmarks.measure.machine import describe, in_words
from benchmarks.measure.record import markdown, record
from benchmarks.update.ways import HOST_PEAK, ON_CPU, REACHED, STREAMED, best_split
from ciuic_dist.estimate.machines import load

_PARAMETERS: Final = 32 << 20
_RUNS: Final = 7
_TITLES: Final = [
    "machine",
    "host memory, GB/s a device",
    "streamed",
    "on the CPU",
    "best split",
    "on the CPU",
    "quicker by",
]


def rates() -> dict[str, float]:
    """Bytes a second of this CPU that AdamW (fused, fp32) touches, and that a copy does, read and written. By turns."""
    values = torch.zeros(_PARAMETERS, requires_grad=True)
    values.grad = torch.ones_like(values)
    optimizer = torch.optim.AdamW([values], fused=True)
    other = torch.empty(_PARAMETERS)
    seconds: dict[str, list[float]] = {"AdamW": [], "copy": []}
    for _ in range(_RUNS):
        seconds["AdamW"].append(_timed(optimizer.step))
        seconds["copy"].append(_timed(lambda: other.copy_(values.detach())))
    touched = {"AdamW": 28, "copy": 8}
    return {name: touched[name] * _PARAMETERS / median(times[1:]) for name, times in seconds.items()}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rows() -> list[list[str]]:
    """Of the table: seconds of a billion parameters."""
    found = []
    for name, (peak, _) in HOST_PEAK.items():
        machine = load(name)
        memory = peak * REACHED / machine.devices
        streamed, on_cpu = STREAMED.seconds(machine, memory), ON_CPU.seconds(machine, memory)
        split = best_split(machine, memory)
        times = [f"{seconds * 1e9:.3f}" for seconds in (streamed, on_cpu, split.seconds)]
        found.append([name, f"{memory / 1e9:.0f}", *times, f"{split.part:.0%}", f"{streamed / split.seconds - 1:.0%}"])
    return found


def _sources() -> str:
    return "\n".join(f"* {name}: {about}" for name, (_, about) in HOST_PEAK.items())


def main() -> None:
    """Measure, compute, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update", description=__doc__)
    parser.add_argument("--out", type=Path, help="a stem: JSON lines go to STEM.jsonl, the table to STEM.md")
    options = parser.parse_args()
    about, here, table = describe(), rates(), rows()
    text = (
        f"{markdown(_TITLES, table)}\n\n"
        f"Seconds of a billion parameters, bf16 with split masters, all state in the host's memory,\n"
        f"at {REACHED:.0%} of what that is advertised with and the links of the machine's file; nothing hides it.\n\n"
        f"{_sources()}\n"
        f"* this CPU, {torch.get_num_threads()} threads: AdamW {here['AdamW'] / 1e9:.1f} GB/s, "
        f"a copy {here['copy'] / 1e9:.1f}\n{in_words(about)}"
    )
    print(text)
    if options.out:
        kept = options.out.with_name(f"{options.out.name}.jsonl")
        record(kept, "machine", about | {"threads": torch.get_num_threads(), "rates": here})
        for row in table:
            record(
                kept,
                "update",
                dict(zip(("machine", "memory", "streamed", "cpu", "split", "part", "gain"), row, strict=True)),
            )
        options.out.with_name(f"{options.out.name}.md").write_text(f"# Where updates run\n\n{text}\n", "utf-8")


if __name__ == "__main__":
    main()
