"""A file that is written from end to end holds what was appended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.checkpoint import stream
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
