"""The process group that torchrun describes, or one process alone."""

from __future__ import annotations

import atexit
import os
import socket
import weakref
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

DEFAULT_TIMEOUT = 300.0
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


class _Settings:
    timeout = DEFAULT_TIMEOUT


# No longer than the default group it stands beside: destroy_process_group ends only groups that nobody holds.
_beside: weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = weakref.WeakKeyDictionary()


def init(timeout: float = DEFAULT_TIMEOUT) -> None:
    """Join the group torchrun describes (Gloo on CPUs, NCCL on NVIDIA's GPUs), or stay one process alone.

    ``timeout`` (seconds) bounds every wait for another rank. Calling it twice, or after
    ``torch.distributed.init_process_group``, keeps the group there is. One made here ends with the process.
    Raises ValueError where the launcher's environment variables contradict each other.
    """
    if timeout <= 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    _Settings.timeout = timeout
    if device().type != "cpu":
        torch.accelerator.set_device_index(device())
    if dist.is_initialized() or "WORLD_SIZE" not in os.environ:
        return
    world = _check_environment()
    if world == 1:
        return
    dist.init_process_group(backend(), timeout=timedelta(seconds=timeout))
    made = dist.group.WORLD
    assert made is not None
    atexit.register(_leave, weakref.ref(made))


def _leave(mine: weakref.ref[dist.ProcessGroup]) -> None:
    """End the group that ``init`` made, if that is the one there is.

    A group's threads take the interpreter's lock to free tensors; while the interpreter ends, that aborts the process.
    """
    if dist.is_initialized() and dist.group.WORLD is mine():
        dist.destroy_process_group()


def _check_environment() -> int:
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start the ranks with torchrun")
    rank_, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not 0 <= rank_ < world:
        raise ValueError(f"RANK={rank_} is outside the world: WORLD_SIZE={world} needs ranks 0 to {world - 1}")
    if device().type != "cpu" and local >= torch.accelerator.device_count():
        raise ValueError(
            f"LOCAL_RANK={local} has no GPU of its own: this host has {torch.accelerator.device_count()}; "
            f"start at most that many ranks here (--nproc-per-node)"
        )
    return world


def rank() -> int:
    """This process's rank; 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def timeout_seconds() -> float:
    """The bound on every wait for another rank, as given to ``init``."""
    return _Settings.timeout


def backend() -> str:
    """What a group of this rank's device, and of the CPU, is made of."""
    kind = device().type
    return "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}"


def device() -> torch.device:
    """Where this rank computes: its GPU, or another accelerator with streams, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "mps":
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


@cache
def host_identity() -> str:
    """The same text on every rank that can map this rank's memory, and on no other.

    The boot id tells hosts apart; the namespaces tell apart containers (and test hosts) on one
    kernel, which reach each other only through the network. ``CIUIC_SHM_DISABLE=1`` in the environment
    makes every rank a host of its own, as ``NCCL_SHM_DISABLE`` does for NCCL.
    """
    if os.environ.get("CIUIC_SHM_DISABLE") == "1":
        return f"rank {rank()}"
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespaces = [Path("/proc/self/ns") / kind for kind in ("net", "ipc", "mnt")]
    parts = [boot.read_text().strip() if boot.exists() else socket.gethostname()]
    parts += [str(link.readlink()) for link in namespaces if link.is_symlink()]
    return "/".join(parts)


def control_group() -> dist.ProcessGroup:
    """The group for messages between CPUs: the default one, or one of Gloo beside it where that has only GPUs.

    Collective at the first call. Raises RuntimeError where there is no default group.
    """
    world = dist.group.WORLD
    if world is None:
        raise RuntimeError("this process is alone: there is no group of ranks")
    if torch.device("cpu") in world._device_types:
        return world
    if world not in _beside:
        _beside[world] = cast(
            "dist.ProcessGroup", dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds()))
        )
    return _beside[world]


def gather_objects(value: T) -> list[T]:
    """Every rank's ``value``, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=control_group())
    return values


def meet() -> None:
    """Wait until every rank is here."""
    gather_objects(None)
