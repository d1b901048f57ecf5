"""A file that is written behind holds what was appended, or appending says why not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.checkpoint import disk, stream
from ciuic_dist.checkpoint.stream import Stream


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BUFFER_BYTES", 64)
    monkeypatch.setattr(stream, "bypass_cache", lambda _: False)


@given(st.lists(st.binary(max_size=400)))
def test_all_parts_follow_each_other(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("parts") / "file"
    with Stream(path) as written:
        for part in parts:
            reused = bytearray(part)
            written.append(reused)
            reused[:] = bytes(len(part))  # may change when append has returned
        written.finish()
        assert written.nbytes == path.stat().st_size
    assert path.read_bytes() == b"".join(parts)


def test_appending_goes_on_until_all_buffers_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, write = Event(), disk.write

    def slow(descriptor: int, content: disk.Buffer) -> None:
        assert answers.wait(60)
        write(descriptor, content)

    monkeypatch.setattr(disk, "write", slow)
    monkeypatch.setattr(stream, "timeout_seconds", lambda: 0.01)
    with Stream(tmp_path / "file") as behind:
        for number in range(stream.BUFFERS - 1):
            behind.append(bytes([number]) * 64)
        with pytest.raises(TimeoutError, match=r"waited 0.01 s to write to .*file: the drive doesn't answer"):
            behind.append(bytes(64))
        answers.set()


def test_what_writing_raised_is_raised_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Event()
    close = os.close

    def full(descriptor: int, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def closing(descriptor: int) -> None:
        close(descriptor)
        closed.set()

    monkeypatch.setattr(disk, "write", full)
    monkeypatch.setattr(os, "close", closing)
    with Stream(tmp_path / "file") as failing:
        failing.append(bytes(64))
        with pytest.raises(OSError, match="No space left"):
            failing.finish()
    assert closed.wait(60)
