"""Measures this machine as training finds it: with all ranks at work at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import torch
from torch.distributed import ProcessGroup

from ciuic_dist.comm import groups
from ciuic_dist.comm.collectives import start_gather
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.comm.room import available
from ciuic_dist.estimate.drive import measure_drive
from ciuic_dist.estimate.showing import measure_showing
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.pages import LARGEST_ON_HOSTS

_ON_GPUS: Final = 8
"""Times as long matrices, and as large updates and copies, which no cache of theirs holds."""
_SIDE: Final = 1024
"""Of the square matrices that are multiplied."""
_COPIED: Final = 64 << 20
"""Bytes of a copy."""
_UPDATED: Final = 4 << 20
"""Parameters of an update."""
_WRITTEN: Final = 128 << 20
"""Bytes that each rank writes and reads to measure the drive."""
_LINKS: Final = 200
"""Operators of a chain."""
_RUNS: Final = 5
_IN_A_ROW: Final = 10
"""Times that a GPU is asked in a run: it has the next before it is done with one, as in training."""
_LONG: Final = 0.5
"""Seconds of a CPU's run that is enough by itself; a GPU's first loads kernels."""


def probe(folder: Path | None = None, nvme: int = 0) -> Machine:
    """The machine that the ranks of ``init`` run on. Collective; every rank gets the same.

    ``folder``, ``nvme``: where pages may be spilled to, and how many bytes of all ranks of a host.
    """
    where = groups.device()
    nodes, devices = arranged(groups.gather_objects(groups.host_identity()))
    drive = None if folder is None else measure_drive(folder, LARGEST_ON_HOSTS, _WRITTEN)
    mine = {
        "bf16": matrix_rate(torch.bfloat16, where),
        "fp32": matrix_rate(torch.float32, where),
        "bandwidth": _copy_rate(where, where) * 2,  # read and written
        "launch": _seconds(_chain(where), where) / (2 * _LINKS),
        "update": _update_rate(where),
        **_link_rates(where, nodes, devices),
        "up": 0.0 if where.type == "cpu" else _copy_rate(torch.device("cpu"), where),
        "down": 0.0 if where.type == "cpu" else _copy_rate(where, torch.device("cpu")),
        "read": 0.0 if drive is None else drive.read,
        "write": 0.0 if drive is None else drive.write,
        "moving": 0.0 if drive is None or where.type != "cpu" else drive.moving,
        "showing": measure_showing(LARGEST_ON_HOSTS, _COPIED) if drive is not None and where.type == "cpu" else 0.0,
    }
    everyone = groups.gather_objects(mine)
    rates: dict[str, Any] = {name: mean(each[name] for each in everyone) for name in mine}
    rates |= {name: rates[name] * devices for name in ("read", "write", "network")}
    return Machine(name="this machine", nodes=nodes, devices=devices, **room(nvme), shared=where.type == "cpu", **rates)


def arranged(hosts: Sequence[str]) -> tuple[int, int]:
    """How many nodes of how many devices ranks on these hosts are.

    Each rank is a node of its own where hosts have different numbers of ranks or take turns.
    """
    devices = hosts.count(hosts[0])
    rows = [set(hosts[first : first + devices]) for first in range(0, len(hosts), devices)]
    whole = all(len(row) == 1 for row in rows) and len(set.union(*rows)) * devices == len(hosts)
    return (len(rows), devices) if whole else (len(hosts), 1)


def room(nvme: int = 0) -> dict[str, Any]:
    """Bytes that are free now: on each device; of a node's memory, where that is another tier; of ``nvme`` a host.

    Collective.
    """
    where = groups.device()
    hosts = groups.gather_objects(groups.host_identity())
    most = max(map(hosts.count, hosts))
    _, devices = arranged(hosts)
    free = min(groups.gather_objects(available()))
    drives = nvme * devices // most
    if where.type == "cpu":
        return {"memory": free // most, "host": 0, "nvme": drives}
    return {"memory": min(groups.gather_objects(_free(where))), "host": free * devices // most, "nvme": drives}


def matrix_rate(dtype: torch.dtype, where: torch.device, side: int = _SIDE) -> float:
    """FLOP/s of this rank, while all multiply square matrices. Collective."""
    side = _larger(side, where)
    left, right = (torch.rand(side, side, device=where).to(dtype) for _ in range(2))
    return 2.0 * side**3 / _seconds(lambda: left @ right, where)


def _copy_rate(source: torch.device, target: torch.device) -> float:
    """Bytes a second that arrive."""
    across = source.type != target.type
    nbytes = _COPIED if across else _larger(_COPIED, target)
    made = [torch.ones(nbytes, dtype=torch.uint8, device=device) for device in (source, target)]
    first, second = (part.pin_memory() if across and part.device.type == "cpu" else part for part in made)
    return nbytes / _seconds(lambda: second.copy_(first, non_blocking=True), groups.device())


def _chain(where: torch.device) -> Callable[[], None]:
    """Operators on next to nothing, and their backward: all they take is calling them."""
    one = torch.ones(16, device=where, requires_grad=True)

    def run() -> None:
        value = one
        for _ in range(_LINKS):
            value = value * value
        value.backward(torch.ones_like(value))

    return run


def _update_rate(where: torch.device) -> float:
    """Parameters a second of AdamW, fused."""
    count = _larger(_UPDATED, where)
    parameter = torch.zeros(count, device=where, requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return count / _seconds(optimizer.step, where)


def _link_rates(where: torch.device, nodes: int, devices: int) -> dict[str, float]:
    """What a rank gets from the others of its node, and from other nodes, while all ranks do; and a small gather."""
    world = nodes * devices
    rates = {"peers": 0.0, "network": 0.0, "latency": _gather_seconds(world, where) if world > 1 else 0.0}
    if world > 1 and 1 in (nodes, devices):
        rates["peers" if nodes == 1 else "network"] = _gather_rate(world, where)
    elif world > 1:
        mesh = Mesh(devices)
        with mesh.sharding() as node:
            rates["peers"] = _gather_rate(devices, where, node)
        with mesh.replication() as across:
            rates["network"] = _gather_rate(nodes, where, across)
    return rates


def _gather_rate(ranks: int, where: torch.device, group: ProcessGroup | None = None) -> float:
    """Bytes a second that a rank gets from the others of a ``group`` of so many."""
    return _COPIED * (ranks - 1) / ranks / _gather_seconds(ranks, where, group, _COPIED // ranks)


def _gather_seconds(ranks: int, where: torch.device, group: ProcessGroup | None = None, each: int = 1) -> float:
    """Of gathering ``each`` bytes of every rank."""
    part = torch.ones(each, dtype=torch.uint8, device=where)
    whole = torch.empty(each * ranks, dtype=torch.uint8, device=where)
    return _seconds(lambda: start_gather(whole, part, "a probe", group).land(), where)


def _larger(size: int, where: torch.device) -> int:
    return size if where.type == "cpu" else size * _ON_GPUS


def _seconds(work: Callable[[], object], where: torch.device) -> float:
    """The median of some runs that all ranks begin together, after one that doesn't count unless it took long."""
    times: list[float] = []
    on_cpu = where.type == "cpu"
    in_a_row = 1 if on_cpu else _IN_A_ROW
    while len(times) <= _RUNS:
        groups.meet()
        _settle(where)
        began = time.perf_counter()
        for _ in range(in_a_row):
            work()
        _settle(where)
        times.append((time.perf_counter() - began) / in_a_row)
        if on_cpu and max(groups.gather_objects(times[0])) > _LONG:
            return times[0]
    return median(times[1:])


def _settle(where: torch.device) -> None:
    if where.type != "cpu":
        torch.accelerator.synchronize(where)


def _free(where: torch.device) -> int:
    """Bytes of a device that a process may have; the allocator keeps none of what was freed."""
    torch.accelerator.empty_cache()
    free, _ = torch.accelerator.get_memory_info(where)
    return int(free)
