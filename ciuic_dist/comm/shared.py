"""The pool that the ranks of one host share: every rank maps the same pages, nothing is sent.

Memory comes from ``memfd_create``: it has no name in /dev/shm, only processes that are handed the
descriptor can map it, and the kernel frees it when the last of them ends, however it ends.
"""

from __future__ import annotations

import mmap
import os
import socket
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ciuic_dist.comm.doorbell import Bell, Doorbell, Rendezvous, receive_descriptor, send_descriptor
from ciuic_dist.comm.groups import gather_objects, rank, timeout_seconds, world_size

_HUGE_PAGE = 2 << 20


class SharedPool:
    """One common segment for parameters, one mailbox a rank for gradients, and the doorbell."""

    def __init__(self, common: Tensor, mailboxes: list[Tensor], doorbell: Doorbell) -> None:
        """``common`` and each of ``mailboxes`` are uint8 tensors over mapped pages, zero at the start."""
        self.common = common
        self.mailboxes = mailboxes
        self.doorbell = doorbell


def open_pool(common_bytes: int, mailbox_bytes: int) -> SharedPool | OSError:
    """Map the pool on all ranks of this world, which must be on one host; collective.

    Returns the first rank's error, on every rank, where the memory can't be had.
    """
    me, world = rank(), world_size()
    rendezvous = Rendezvous(me, timeout_seconds())
    try:
        addresses = dict(enumerate(gather_objects(rendezvous.address)))
        sizes = [mailbox_bytes] + ([common_bytes + world * len(Bell) * 8] if me == 0 else [])
        descriptors, error = _create(sizes, host_total=common_bytes + world * mailbox_bytes)
        errors = gather_objects(None if error is None else str(error))
        failed = next((text for text in errors if text is not None), None)
        if failed is not None:
            for descriptor in descriptors:
                os.close(descriptor)
            return OSError(failed)
        sockets = rendezvous.connect(addresses)
    finally:
        rendezvous.close()
    return _map_all(me, sockets, descriptors, common_bytes, mailbox_bytes)


def _create(sizes: list[int], host_total: int) -> tuple[list[int], OSError | None]:
    descriptors: list[int] = []
    try:
        _check_room(host_total)
        for size in sizes:
            descriptor = os.memfd_create("ciuic-pool", os.MFD_CLOEXEC)
            descriptors.append(descriptor)
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, max(size, 1))
    except OSError as error:
        return descriptors, error
    return descriptors, None


def _check_room(size: int) -> None:
    """Refuse what the host has no memory for: pages come at first touch, too late for an error."""
    with Path("/proc/meminfo").open() as lines:
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    if size > available:
        raise OSError(f"{size} bytes of shared memory are needed and {available} are available on this host")


def _map_all(
    me: int, sockets: dict[int, socket.socket], own: list[int], common_bytes: int, mailbox_bytes: int
) -> SharedPool:
    world = len(sockets) + 1
    for end in sockets.values():
        for descriptor in own:
            send_descriptor(end, descriptor)
    mailboxes: list[Tensor] = []
    common: mmap.mmap | None = None
    for owner in range(world):
        count = 2 if owner == 0 else 1
        opened = own if owner == me else [receive_descriptor(sockets[owner]) for _ in range(count)]
        mailboxes.append(torch.frombuffer(_map(opened[0], mailbox_bytes), dtype=torch.uint8))
        if owner == 0:
            common = _map(opened[1], common_bytes + world * len(Bell) * 8)
        for descriptor in opened:
            os.close(descriptor)
    assert common is not None
    table = memoryview(common)[common_bytes:].cast("q")
    doorbell = Doorbell(me, sockets, table, timeout_seconds())
    return SharedPool(torch.frombuffer(common, dtype=torch.uint8, count=max(common_bytes, 1)), mailboxes, doorbell)


def _map(descriptor: int, size: int) -> mmap.mmap:
    mapped = mmap.mmap(descriptor, max(size, 1))
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # kernels without huge pages for shared memory
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped
