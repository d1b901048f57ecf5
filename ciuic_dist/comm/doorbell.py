"""Signals between the ranks of one host: counters in shared memory, a socket to wake the waiter.

A rank that has done something counts it up in its own row of a shared table, then sends one byte
to each peer. A waiter looks at the table and sleeps in ``poll`` until a byte comes, so that more
ranks than cores don't starve each other, and the death of a peer is an end-of-file at once.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

from ciuic_dist.comm.errors import PeerLost


class Bell(IntEnum):
    """What a rank can have done; each is counted from the start of the run."""

    ENTERED = 0  # come to a point after which this host's shared parameters may be overwritten
    UPDATED = 1  # written its slice of the shared parameters
    READY = 2  # put the gradients of one more unit in its mailbox
    READ = 3  # read its slice of one more unit's gradients from all mailboxes


class Doorbell:
    """One rank's end of the signals: ``ring`` counts and wakes, ``wait`` sleeps until all peers have counted."""

    def __init__(self, rank: int, sockets: dict[int, socket.socket], table: memoryview, timeout: float) -> None:
        """``table`` is the shared int64 table, one row of ``len(Bell)`` counters a rank."""
        self._rank = rank
        self._sockets = sockets
        self._table = table
        self._timeout = timeout
        self._lost: dict[int, str] = {}
        self._poll = select.poll()
        self._by_descriptor = {end.fileno(): peer for peer, end in sockets.items()}
        for end in sockets.values():
            end.setblocking(False)
            self._poll.register(end, select.POLLIN)

    def ring(self, bell: Bell) -> int:
        """Count ``bell`` once more for this rank and wake the peers; returns the new count."""
        index = self._rank * len(Bell) + bell
        self._table[index] += 1
        for end in self._sockets.values():
            # A full buffer holds bytes that wake the peer anyway; a dead peer is wait's to report.
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                end.send(b"\0")
        return self._table[index]

    def wait(self, bell: Bell, count: int, purpose: str) -> None:
        """Sleep until every peer has counted ``bell`` to ``count``.

        Raises PeerLost if a peer ends before, or after the timeout; ``purpose`` says what was awaited.
        """
        deadline = time.monotonic() + self._timeout
        self._drain(0.0)
        while late := [peer for peer in self._sockets if self._table[peer * len(Bell) + bell] < count]:
            for peer in late:
                if peer in self._lost:
                    raise PeerLost(f"rank {peer} ended ({self._lost[peer]}) while rank {self._rank} waited {purpose}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerLost(
                    f"rank {self._rank} waited {self._timeout:g} s {purpose}; rank {late[0]} has not come: it has done "
                    f"{self._table[late[0] * len(Bell) + bell]} of {count} ({bell.name.lower()})"
                )
            self._drain(left)

    def close(self) -> None:
        """Hang up; peers that still wait for this rank are told that it ended."""
        for end in self._sockets.values():
            end.close()
        self._sockets = {}

    def _drain(self, seconds: float) -> None:
        for descriptor, _ in self._poll.poll(seconds * 1000):
            peer = self._by_descriptor[descriptor]
            try:
                rest = self._sockets[peer].recv(4096)
            except BlockingIOError:
                continue
            except ConnectionError as error:
                rest, self._lost[peer] = b"", str(error)
            if not rest:
                self._lost.setdefault(peer, "its connection closed")
                self._poll.unregister(descriptor)


class Rendezvous:
    """Connects the ranks of one host with each other over Unix sockets in a private folder."""

    def __init__(self, rank: int, timeout: float) -> None:
        self._rank = rank
        self._timeout = timeout
        self._folder = Path(tempfile.mkdtemp(prefix="ciuic-"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address = str(self._folder / "door")
        self._listener.bind(self.address)
        self._listener.listen(1024)
        self._listener.settimeout(timeout)

    def connect(self, addresses: dict[int, str]) -> dict[int, socket.socket]:
        """A connected socket for every peer; ``addresses`` are those of all ranks of this host."""
        sockets: dict[int, socket.socket] = {}
        try:
            for peer in sorted(addresses):
                if peer < self._rank:
                    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    end.settimeout(self._timeout)
                    end.connect(addresses[peer])
                    end.sendall(self._rank.to_bytes(4, "little"))
                    sockets[peer] = end
            while len(sockets) < len(addresses) - 1:
                end, _ = self._listener.accept()
                end.settimeout(self._timeout)
                sockets[int.from_bytes(end.recv(4, socket.MSG_WAITALL), "little")] = end
        except TimeoutError:
            missing = sorted(set(addresses) - set(sockets) - {self._rank})
            raise PeerLost(f"rank {self._rank} waited {self._timeout:g} s for ranks {missing} to connect") from None
        finally:
            self.close()
        return sockets

    def close(self) -> None:
        """Remove the folder; connections that are made stay."""
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def send_descriptor(end: socket.socket, descriptor: int) -> None:
    """Pass an open file to the process at the other end."""
    socket.send_fds(end, [b"f"], [descriptor])


def receive_descriptor(end: socket.socket) -> int:
    """Take the file that the other end passes; the caller closes it."""
    message, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    if not message or not descriptors:
        raise PeerLost("the peer closed its connection before passing its memory")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]
