"""Signals between ranks, over a pair of sockets in one process."""

from __future__ import annotations

import os
import socket
import tempfile
import warnings
from pathlib import Path

import pytest

from ciuic_dist.comm.doorbell import Bell, Doorbell, Rendezvous
from ciuic_dist.comm.errors import PeerLost


def pair(timeout: float = 10.0) -> tuple[Doorbell, Doorbell]:
    left, right = socket.socketpair()
    return Doorbell(0, {1: left}, timeout), Doorbell(1, {0: right}, timeout)


def test_each_bell_is_counted_by_itself() -> None:
    ours, theirs = pair(timeout=0.0)
    assert [theirs.ring(Bell.READY), theirs.ring(Bell.READY), theirs.ring(Bell.READ)] == [1, 2, 1]
    ours.wait(Bell.READY, 2, "for nothing")
    with pytest.raises(PeerLost, match=r"it has done 1 of 2 \(read\)"):
        ours.wait(Bell.READ, 2, "for one more")
    ours.close()
    theirs.close()


def test_what_a_peer_did_before_it_ended_counts() -> None:
    ours, theirs = pair()
    theirs.ring(Bell.UPDATED)
    theirs.close()
    ours.wait(Bell.UPDATED, 1, "for the update")
    with pytest.raises(PeerLost, match="rank 1 ended"):
        ours.wait(Bell.UPDATED, 2, "for the next update")
    ours.close()


def test_a_closed_doorbell_refuses() -> None:
    ours, theirs = pair()
    ours.close()
    with pytest.raises(RuntimeError, match="closed this model's connections"):
        ours.wait(Bell.READY, 1, "for a unit")
    with pytest.raises(RuntimeError, match="closed this model's connections"):
        ours.ring(Bell.READY)
    theirs.close()


def test_a_peer_that_never_listens_is_lost() -> None:
    def ring_on(doorbell: Doorbell) -> None:
        for _ in range(1 << 20):
            doorbell.ring(Bell.READY)

    ours, theirs = pair()
    with pytest.raises(PeerLost, match="rank 1 doesn't take the signals"):
        ring_on(ours)
    ours.close()
    theirs.close()


def test_a_child_does_not_keep_the_line_open() -> None:
    ours, end = socket.socketpair()
    end.settimeout(10.0)
    doorbell = Doorbell(0, {1: ours}, 10.0)
    stay, go = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child only reads a pipe
        child = os.fork()
    if child == 0:
        os.read(stay, 1)
        os._exit(0)
    try:
        doorbell.close()
        assert end.recv(1) == b""  # while the child lives
    finally:
        os.write(go, b"x")
        os.waitpid(child, 0)
        for descriptor in (stay, go):
            os.close(descriptor)
        end.close()


def test_a_long_folder_for_temporary_files_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    rendezvous = Rendezvous(0, 1.0)
    assert Path(rendezvous.address).is_socket()
    rendezvous.close()
    assert not Path(rendezvous.address).parent.exists()
