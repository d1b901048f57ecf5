"""What it takes to let the model see parameters that come and go, through what the engine itself uses: a Window."""

from __future__ import annotations

import time

from ciuic_dist.memory.frames import Frames, Window

_ROUNDS = 8
"""Each shows what the one before didn't, as parameters come to other frames."""


def measure_showing(frame_bytes: int, nbytes: int) -> float:
    """Processor seconds a byte, to map ``nbytes`` of frames and hide them again."""
    count = max(nbytes // frame_bytes, 1)
    frames = Frames(frame_bytes, 2 * count)
    window = Window([(count * frame_bytes, frames.descriptor)], frame_bytes)
    halves = [[frames.pool.alloc() for _ in range(count)] for _ in range(2)]
    for number in (number for half in halves for number in half):
        frames.view(number, frame_bytes).zero_()
    began = time.thread_time()
    for turn in range(_ROUNDS):
        window.open({0: halves[turn % 2]})
        window.close()
    busy = time.thread_time() - began
    frames.close()
    return busy / (_ROUNDS * count * frame_bytes)
