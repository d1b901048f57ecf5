"""Signals between the ranks of one host: a byte over a socket says what a rank has done once more.

A waiter counts the bytes it gets and sleeps in ``poll`` until more come, so that more ranks than cores don't
starve each other, and the death of a peer is an end-of-file at once. The kernel's locks around a socket order
memory too: what a rank wrote to shared pages before it rang is there for whoever has heard it, on any processor.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np

from ciuic_dist.comm.errors import PeerLost


class Bell(IntEnum):
    """What a rank can have done; each is counted from the start of the run."""

    ENTERED = 0  # come to a point after which this host's shared parameters may be overwritten
    UPDATED = 1  # written its slice of the shared parameters
    READY = 2  # put the gradients of one more unit in its mailbox
    READ = 3  # read its slice of one more unit's gradients from all mailboxes
    NEWS = 4  # written something to its board
    MET = 5  # come to the end of one more phase
    AGREEING = 6  # put one more number on its board


RUNG, RESTS = 0, 1
"""Of ``Doorbell.pulse``."""


class Doorbell:
    """One rank's end of the signals: ``ring`` counts and wakes, ``wait`` sleeps until all peers have counted.

    ``attend`` is called in every wait, first and after each signal: what this rank does for those who wait for it.
    It tells whether it has more to do soon, without a signal. ``pulse`` is for others to see: how often this rank has
    rung, and 1 + how many signals it has heard if it sleeps, else 0.
    """

    def __init__(self, rank: int, sockets: dict[int, socket.socket], timeout: float, *, first: int = 0) -> None:
        """Takes over ``sockets``, one connected to each peer, and closes them at its end; ``timeout`` in seconds.

        Ranks are counted from the world's rank ``first``.
        """
        self._rank = rank
        self._first = first
        self._sockets = sockets
        self._timeout = timeout
        self.attend: Callable[[], bool] = lambda: False
        self.pulse = np.zeros(2, np.int64)
        self._rung = [0] * len(Bell)
        self._heard = {peer: [0] * len(Bell) for peer in sockets}
        self._lost: dict[int, str] = {}
        self._poll = select.poll()
        self._by_descriptor = {end.fileno(): peer for peer, end in sockets.items()}
        for end in sockets.values():
            end.setblocking(False)
            self._poll.register(end, select.POLLIN)
        self._hang_up = weakref.finalize(self, _close_all, list(sockets.values()))
        _doorbells.add(self)

    def ring(self, bell: Bell) -> int:
        """Count ``bell`` once more for this rank and wake the peers; returns the new count."""
        self._check_open()
        self._rung[bell] += 1
        self.pulse[RUNG] += 1
        for peer, end in self._sockets.items():
            try:
                end.send(_SIGNALS[bell])
            except (BrokenPipeError, ConnectionResetError):
                pass  # a dead peer is wait's to report
            except BlockingIOError:  # no rank gets that far ahead of one that takes part
                raise PeerLost(f"{self._name(peer)} doesn't take the signals of {self._name()} any more") from None
        return self._rung[bell]

    def wait(self, bell: Bell, count: int, purpose: str) -> None:
        """Sleep until every peer has counted ``bell`` to ``count``.

        Raises PeerLost if a peer ends before, or after the timeout; ``purpose`` says what was awaited.
        """

        def late() -> list[int]:
            return [peer for peer, heard in self._heard.items() if heard[bell] < count]

        self.wait_until_none(
            late, purpose, lambda peer: f"it has done {self._heard[peer][bell]} of {count} ({bell.name.lower()})"
        )

    def wait_until_none(self, late: Callable[[], list[int]], purpose: str, state: Callable[[int], str]) -> None:
        """Sleep until no peer is ``late``, asked at every signal; ``state`` says of a peer where it is, for errors.

        Raises PeerLost as ``wait`` does.
        """
        self._check_open()
        deadline = time.monotonic() + self._timeout
        self.listen()
        busy = self.attend()
        while awaited := late():
            for peer in awaited:
                if peer in self._lost:
                    raise PeerLost(
                        f"{self._name(peer)} ended ({self._lost[peer]}) while {self._name()} waited {purpose}"
                    )
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerLost(
                    f"{self._name()} waited {self._timeout:g} s {purpose}; {self._name(awaited[0])} has not come: "
                    f"{state(awaited[0])}"
                )
            self._sleep(min(left, _SOON if busy else _NOW_AND_THEN), busy=busy)
            busy = self.attend()

    def attend_until(self, done: Callable[[], bool]) -> None:
        """Do this rank's part for the others until something is ``done`` of which no signal tells.

        Returns after the timeout, too. A peer may end meanwhile: it may have done all of its part.
        """
        deadline = time.monotonic() + self._timeout
        heard, busy = -1, False
        while not done() and time.monotonic() < deadline:
            if busy or self.heard > heard:  # each look may ring, and those who compute take no signals
                heard = self.heard
                busy = self.attend()
            self._sleep(_SOON, busy=True)

    def _name(self, peer: int | None = None) -> str:
        return f"rank {self._first + (self._rank if peer is None else peer)}"

    def _sleep(self, seconds: float, *, busy: bool) -> None:
        self.pulse[RESTS] = 0 if busy else 1 + self.heard
        self._drain(seconds)
        self.pulse[RESTS] = 0

    @property
    def heard(self) -> int:
        """How many signals have been taken."""
        return sum(map(sum, self._heard.values()))

    def listen(self) -> None:
        """Take the signals that have come, without waiting."""
        self._drain(0.0)

    def close(self) -> None:
        """Hang up; peers that still wait for this rank are told that it ended."""
        self._hang_up()

    def _check_open(self) -> None:
        if not self._hang_up.alive:
            raise RuntimeError(
                f"{self._name()} has closed this model's connections to the other ranks, or inherited the model "
                f"through a fork: only the process that called cd.shard can use it, and not after closing it"
            )

    def _drain(self, seconds: float) -> None:
        for descriptor, _ in self._poll.poll(seconds * 1000):
            peer = self._by_descriptor[descriptor]
            try:
                signals = self._sockets[peer].recv(4096)
            except BlockingIOError:
                continue
            except ConnectionError as error:
                signals, self._lost[peer] = b"", str(error)
            if not signals:
                self._lost.setdefault(peer, "its connection closed")
                self._poll.unregister(descriptor)
            for bell in signals:
                self._heard[peer][bell] += 1


_SOON, _NOW_AND_THEN = 0.001, 1.0
"""Seconds until a wait looks again by itself."""
_SIGNALS = [bytes([bell]) for bell in Bell]
_doorbells: weakref.WeakSet[Doorbell] = weakref.WeakSet()


def _close_all(sockets: Sequence[socket.socket]) -> None:
    for end in sockets:
        end.close()


def _close_in_child() -> None:
    """A child that kept the sockets open would hide the death of its parent from the other ranks."""
    for doorbell in list(_doorbells):
        doorbell.close()


os.register_at_fork(after_in_child=_close_in_child)


class Rendezvous:
    """Connects the ranks of one host with each other over Unix sockets in a private folder."""

    def __init__(self, rank: int, timeout: float, *, first: int = 0) -> None:
        """Ranks are counted from the world's rank ``first``. Raises OSError where there can be no folder or socket."""
        self._rank = rank
        self._first = first
        self._timeout = timeout
        # A socket's path has room for some 100 characters, less than a scheduler's TMPDIR may take.
        crowded = len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER
        self._folder = Path(tempfile.mkdtemp(prefix="ciuic-", dir="/tmp" if crowded else None))  # noqa: S108
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address = str(self._folder / "door")
        try:
            self._listener.bind(self.address)
        except OSError:
            self.close()
            raise
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
            missing = [self._first + peer for peer in sorted(set(addresses) - set(sockets) - {self._rank})]
            name = f"rank {self._first + self._rank}"
            raise PeerLost(f"{name} waited {self._timeout:g} s for ranks {missing} to connect") from None
        return sockets

    def close(self) -> None:
        """Remove the folder; connections that are made stay."""
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


_LONGEST_FOLDER = 64
"""Bytes; leaves room for the name that ``mkdtemp`` makes up and for the socket's."""


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
