"""Whether pages are compressed on their way to a drive. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CodecRates:
    """Bytes a second of one core, counted as they are before they are compressed."""

    encode: float
    decode: float


def outruns(codec: CodecRates, cores: int, *, write: float, read: float) -> bool:
    """Whether a drive of ``write`` and ``read`` bytes a second takes and gives pages quicker when they are compressed.

    ``cores``: those that do nothing else meanwhile, so none where all of them train. Compression goes on beside the
    drive, so what comes of both has the slower one's rate: it pays where the codec is the quicker, whatever the ratio,
    and to be on it must pay both ways.
    """
    return codec.encode * cores > write and codec.decode * cores > read
