"""The pool that the ranks of one host share: every rank maps the same pages, nothing is sent.

Memory comes from ``memfd_create``: it has no name in /dev/shm, only processes that are handed the
descriptor can map it, and the kernel frees it when the last of them ends, however it ends.
"""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, closing
from math import ceil, floor

from torch import Tensor

from ciuic_dist.comm.doorbell import Doorbell, Rendezvous, receive_descriptor, send_descriptor
from ciuic_dist.comm.groups import gather_objects, rank, timeout_seconds, world_size
from ciuic_dist.comm.room import available
from ciuic_dist.memory.mapping import anonymous_file, shared
from ciuic_dist.monitor.units import size_text


class SharedPool:
    """One common segment for parameters, one mailbox a rank for gradients, and the doorbell."""

    def __init__(self, common: Tensor, mailboxes: list[Tensor], frames: list[int], doorbell: Doorbell) -> None:
        """``common`` and ``mailboxes`` (uint8) are zero at the start; ``frames`` are descriptors, closed at its end."""
        self.common = common
        self.mailboxes = mailboxes
        self.frames = frames
        self.doorbell = doorbell
        weakref.finalize(self, _close_all, frames)


def open_pool(
    common_bytes: int, mailbox_bytes: int, frames: int | None = None, in_frames: int = 0
) -> SharedPool | OSError:
    """Map the pool on all ranks of this world, which must be on one host; collective.

    ``frames``: the file, if there is one, in which this rank's parameters come and go; ``in_frames``: bytes of all
    ranks' that are there at a time.

    Returns the first rank's error, on every rank, where the memory or a socket can't be had.
    """
    me, world = rank(), world_size()
    address, failure = "", None
    own: list[int] = []
    with ExitStack() as stack:
        try:
            _check_room(common_bytes + world * mailbox_bytes + in_frames)
            for size in [mailbox_bytes] + ([common_bytes] if me == 0 else []):
                own.append(anonymous_file(size))
                stack.callback(os.close, own[-1])
            rendezvous = stack.enter_context(closing(Rendezvous(me, timeout_seconds())))
            address = rendezvous.address
        except OSError as error:
            failure = str(error)
        answers = gather_objects((address, failure))
        failed = next((text for _, text in answers if text is not None), None)
        if failed is not None:
            return OSError(failed)
        sockets = rendezvous.connect({peer: door for peer, (door, _) in enumerate(answers)})
        return _map_all(me, sockets, own, frames, common_bytes, mailbox_bytes)


def _check_room(size: int) -> None:
    """Refuse what there is no memory for: pages come at first touch, too late for an error."""
    room = available()
    if size > room:
        raise OSError(
            f"{size_text(size, ceil)} of shared memory are needed and "
            f"{size_text(room, floor)} are available on this host"
        )


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _map_all(
    me: int,
    sockets: dict[int, socket.socket],
    own: list[int],
    frames: int | None,
    common_bytes: int,
    mailbox_bytes: int,
) -> SharedPool:
    for end in sockets.values():
        for descriptor in own if frames is None else [*own, frames]:
            send_descriptor(end, descriptor)
    mailboxes: list[Tensor] = []
    files: list[int] = []
    for owner in range(len(sockets) + 1):
        sizes = [mailbox_bytes] + ([common_bytes] if owner == 0 else [])
        mapped = []
        for position, size in enumerate(sizes):
            descriptor = os.dup(own[position]) if owner == me else receive_descriptor(sockets[owner])
            mapped.append(shared(descriptor, size))
            os.close(descriptor)
        mailboxes.append(mapped[0])
        if owner == 0:
            common = mapped[1]
        if frames is not None:
            files.append(os.dup(frames) if owner == me else receive_descriptor(sockets[owner]))
    return SharedPool(common, mailboxes, files, Doorbell(me, sockets, timeout_seconds()))
