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
from ciuic_dist.comm.groups import gather_objects, timeout_seconds
from ciuic_dist.comm.mesh import Mesh
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
    mesh: Mesh, common_bytes: int, mailbox_bytes: int, frames: int | None = None, in_frames: int = 0, *, pools: int = 1
) -> SharedPool | OSError:
    """Map a pool on the ranks of each of the mesh's groups, which must be on one host each; collective over all.

    ``frames``: the file, if there is one, in which this rank's parameters come and go; ``in_frames``: bytes of all
    ranks' that are there at a time. ``pools``: so many groups of this host map one each.

    Returns the first rank's error, on every rank, where the memory or a socket can't be had.
    """
    me = mesh.place
    address, failure = "", None
    own: list[int] = []
    with ExitStack() as stack:
        try:
            _check_room(pools * (common_bytes + mesh.size * mailbox_bytes + in_frames))
            for size in [mailbox_bytes] + ([common_bytes] if me == 0 else []):
                own.append(anonymous_file(size))
                stack.callback(os.close, own[-1])
            rendezvous = stack.enter_context(closing(Rendezvous(me, timeout_seconds(), first=mesh.first)))
            address = rendezvous.address
        except OSError as error:
            failure = str(error)
        answers = gather_objects((address, failure))
        failed = next((text for _, text in answers if text is not None), None)
        if failed is not None:
            return OSError(failed)
        peers = answers[mesh.first : mesh.first + mesh.size]
        sockets = rendezvous.connect({peer: door for peer, (door, _) in enumerate(peers)})
        return _map_all(mesh, sockets, own, frames, common_bytes, mailbox_bytes)


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
    mesh: Mesh,
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
    for owner in range(mesh.size):
        sizes = [mailbox_bytes] + ([common_bytes] if owner == 0 else [])
        mapped = []
        for position, size in enumerate(sizes):
            descriptor = os.dup(own[position]) if owner == mesh.place else receive_descriptor(sockets[owner])
            mapped.append(shared(descriptor, size))
            os.close(descriptor)
        mailboxes.append(mapped[0])
        if owner == 0:
            common = mapped[1]
        if frames is not None:
            files.append(os.dup(frames) if owner == mesh.place else receive_descriptor(sockets[owner]))
    doorbell = Doorbell(mesh.place, sockets, timeout_seconds(), first=mesh.first)
    return SharedPool(common, mailboxes, files, doorbell)
