"""What a drive may do to a file: a bit flips, or the end is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random


def damaged(content: bytes, draw: Random) -> bytes:
    """``content`` with one bit flipped, or cut off, wherever ``draw`` says."""
    cut, at = draw.random() < 0.3, draw.randrange(len(content))
    if cut:
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def damages(file: Path, times: int) -> Iterator[bytes]:
    """Each time ``file`` has other damage; yields what it has."""
    content, draw = file.read_bytes(), Random(0)
    for _ in range(times):
        file.write_bytes(found := damaged(content, draw))
        yield found
