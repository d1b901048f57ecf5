"""What a reader sees: the configuration and a table for each part, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.gpu.trials import IN_MEMORY, Trial
from benchmarks.measure.record import markdown, reason

_GB, _MIB, _TERA = 1e9, 1 << 20, 1e12
Done = tuple[Trial, dict[str, Any], str]
"""A trial, its report, and what went wrong, if it did."""


def configuration(facts: dict[str, Any], machine: dict[str, Any]) -> str:
    """The lines above the tables."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "deepspeed"))
    environment = ", ".join(f"{key}={value}" for key, value in facts["environment"].items()) or "nothing"
    known = {"capability": facts["capability"], "driver": facts["driver"], "CUDA": facts["cuda"]}
    cuda = "".join(f", {name} {value}" for name, value in known.items() if value)
    return f"""\
* {facts["name"]}, {facts["free"] / 2**30:.1f} of {facts["memory"] / 2**30:.1f} GiB free{cuda}
* {machine["processor"]}, {machine["cores"]} cores, {facts["host"] / 2**30:.0f} of {machine["memory"] / 2**30:.0f} GiB \
free, Linux {machine["kernel"]}
* {versions}; {machine["date"]}; set in the environment: {environment}
* memory is in GB (10^9 bytes)
"""


def links(report: dict[str, Any]) -> str:
    """Copies by page size, and the other rates."""
    titles = ("page, MiB", "host to device, GB/s", "device to host, GB/s", "both at once, GB/s", "registering, s/GB")
    rows = [
        [
            f"{each['page'] / _MIB:g}",
            *(f"{each[way] / _GB:.1f}" for way in ("up", "down", "both")),
            f"{each['registering'] * _GB:.2f}",
        ]
        for each in report["copies"]
    ]
    drive, machine = report["drive"], report["machine"]
    return (
        f"{markdown(titles, rows)}\n\n"
        f"* AdamW on the host, fused, {report['threads']} threads: {report['update'] / _GB:.1f} GB/s\n"
        f"* drive: read {drive['read'] / _GB:.2f}, write {drive['write'] / _GB:.2f}, both at once "
        f"{drive['both'] / _GB:.2f} GB/s\n"
        f"* as plans have it: bf16 {machine['bf16'] / _TERA:.0f} and fp32 {machine['fp32'] / _TERA:.1f} TFLOP/s, "
        f"memory {machine['bandwidth'] / _GB:.0f} GB/s, {machine['launch'] * 1e6:.1f} us an operator, AdamW "
        f"{machine['update'] / _GB:.1f} * 10^9 parameters/s, up {machine['up'] / _GB:.1f}, down "
        f"{machine['down'] / _GB:.1f} GB/s"
    )


def training(done: Sequence[Done]) -> str:
    """A line a trial; speeds are compared with the one in memory of the same blocks and tokens."""
    titles = (
        "trial",
        "parameters, 10^9",
        "s a step: median (min..max)",
        "TFLOP/s",
        "with recomputing",
        "6 N tokens, TFLOP/s",
        "of in memory",
        "device: peak / budget",
        "host: peak / budget",
        "allocated",
        "reserved",
        "reserved more after step one",
        "after the warm-up",
        "up a step",
        "down a step",
        "stalls, s a step",
        "before step one, s",
        "last loss",
    )
    rows = []
    for trial, report, error in done:
        if error:
            rows.append([f"{trial.name}: failed: {reason(error)}"])
            continue
        ways = figures(trial, report)
        same = [figures(t, r) for t, r, e in done if not e and t.work == trial.work and t.name.endswith(IN_MEMORY)]
        of_memory = f"{ways['flops'] / same[0]['flops']:.1%}" if same else ""
        rows.append([trial.name, *_speed(trial, report, ways, of_memory), *_memory(trial, report, ways)])
    return (
        f"{markdown(titles, rows)}\n\n"
        "* bf16 with masters, AdamW in the backward where it is ours, activation checkpointing by the model, synthetic "
        "tokens and values\n"
        "* TFLOP/s: forward and backward, causal attention counted once; a step with fewer layers stands in where not "
        "all are in memory: compared are operations a second of the same blocks\n"
        "* allocated and reserved: by torch's allocator, at most, in the timed steps"
    )


def figures(trial: Trial, report: dict[str, Any]) -> dict[str, float]:
    """Of the median timed step: seconds, operations a second; bytes by which the allocator grew."""
    warmup, work = trial.setting.warmup, report["work"]
    seconds, reserved = median(report["step_seconds"][warmup:]), report["reserved"]
    return {
        "seconds": seconds,
        "flops": work["flops"] / seconds,
        "all_flops": (work["flops"] + work["recomputed"]) / seconds,
        "rule_flops": 6 * report["parameters"] * trial.setting.tokens / seconds,
        "grown_after_one": max(0, max(reserved[1:]) - reserved[0]),
        "grown": max(0, max(reserved[warmup:]) - max(reserved[:warmup])),
    }


def outcome(trial: Trial, report: dict[str, Any], error: str) -> dict[str, Any]:
    """What is kept of a trial."""
    return asdict(trial) | ({"error": error} if error else report | figures(trial, report))


def _speed(trial: Trial, report: dict[str, Any], ways: dict[str, float], of_memory: str) -> list[str]:
    timed = report["step_seconds"][trial.setting.warmup :]
    return [
        f"{report['parameters'] / 1e9:.2f}",
        f"{ways['seconds']:.3f} ({min(timed):.3f}..{max(timed):.3f})",
        *(f"{ways[key] / _TERA:.1f}" for key in ("flops", "all_flops", "rule_flops")),
        of_memory,
    ]


def _memory(trial: Trial, report: dict[str, Any], ways: dict[str, float]) -> list[str]:
    steps = trial.setting.steps
    up, down = (
        sum(nbytes for name, nbytes in report["moved"].items() if name.startswith("device->") is leaves)
        for leaves in (False, True)
    )
    return [
        *(_tier(report["tiers"].get(name)) for name in ("device", "host")),
        *(f"{nbytes / _GB:.2f}" for nbytes in (report["allocated"], report["reserved"][-1])),
        *(f"{ways[key] / _GB:.3f}" for key in ("grown_after_one", "grown")),
        *(f"{nbytes / steps / _GB:.2f}" for nbytes in (up, down)),
        f"{report['stall_seconds'] / steps:.3f}",
        f"{report['preparing']:.1f}",
        f"{report['losses'][-1]:.4f}",
    ]


def _tier(usage: dict[str, Any] | None) -> str:
    if usage is None:
        return ""
    return f"{usage['peak'] / _GB:.2f} / {'' if usage['budget'] is None else format(usage['budget'] / _GB, '.2f')}"
