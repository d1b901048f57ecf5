"""Compression is on when the codec outruns the disk."""

from __future__ import annotations

import pytest

from ciuic_dist.compress.worth import CodecRates, outruns
from ciuic_dist.estimate.codec import measure_codec

CODEC = CodecRates(encode=1.0, decode=1.5)


@pytest.mark.parametrize(
    ("cores", "write", "read", "on"),
    [
        (1, 0.9, 1.4, True),
        (1, 1.1, 1.4, False),
        (1, 0.9, 1.6, False),
        (2, 1.9, 2.9, True),
        (2, 1.9, 3.1, False),
        (0, 0.1, 0.1, False),
    ],
    ids=["slow disk", "writes quicker", "reads quicker", "two cores", "two cores, reads quicker", "all cores train"],
)
def test_on_when_the_codec_outruns_the_disk(cores: int, write: float, read: float, *, on: bool) -> None:
    assert outruns(CODEC, cores, write=write, read=read) is on


def test_a_codec_that_only_keeps_up_saves_no_time() -> None:
    assert not outruns(CODEC, 1, write=1.0, read=1.0)


def test_the_codec_of_this_machine_has_rates() -> None:
    rates = measure_codec(1 << 20)
    assert rates.encode > 0
    assert rates.decode > 0
