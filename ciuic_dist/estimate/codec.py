"""How quickly a core compresses pages of fp32 values, and makes them whole again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch

from ciuic_dist.compress.lossless import decode, encode
from ciuic_dist.compress.worth import CodecRates

_RUNS: Final = 16


def measure_codec(page_bytes: int) -> CodecRates:
    """By the processor's clock, so that who else is at work matters little. The values are normal, as weights are."""
    values = torch.randn(page_bytes // 4, generator=torch.Generator().manual_seed(0))
    page = values.view(torch.uint8).numpy().data
    codec, stored = encode(page, values.itemsize)
    into = bytearray(page)
    return CodecRates(
        encode=page_bytes / _seconds(lambda: encode(page, values.itemsize)),
        decode=page_bytes / _seconds(lambda: decode(codec, stored, into)),
    )


def _seconds(work: Callable[[], object]) -> float:
    """The quickest of some runs: the first ones wait for the kernel to clear memory."""
    times = []
    for _ in range(_RUNS):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)
