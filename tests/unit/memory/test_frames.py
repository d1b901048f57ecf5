"""Frames keep their content wherever they are shown, and a window shows what it was told to and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ciuic_dist.memory.frames import Frames, Window

FRAME = 8192
SLICE = 12288  # a frame and a half


@pytest.fixture
def frames() -> Frames:
    made = Frames(FRAME, 6)
    for number in range(6):
        made.view(number, FRAME).fill_(number)
    return made


def shown(window: Window, index: int) -> list[int]:
    """What the two frames of a slice hold."""
    content = window.memory[index * SLICE : (index + 1) * SLICE].tolist()
    assert len(set(content[:FRAME])) == len(set(content[FRAME:])) == 1
    return [content[0], content[-1]]


def test_a_slice_shows_its_frames_in_order(frames: Frames) -> None:
    window = Window([(SLICE, frames.descriptor)], FRAME)
    window.open({0: [4, 1]})
    assert shown(window, 0) == [4, 1]
    window.memory[0] = 9
    assert frames.view(4, 1).tolist() == [9]


def test_two_windows_see_each_other_write(frames: Frames) -> None:
    first, second = (Window([(SLICE, frames.descriptor)] * 2, FRAME) for _ in range(2))
    first.open({0: [0, 1], 1: [2, 3]})
    second.open({0: [2, 3], 1: [0, 1]})
    first.memory.fill_(5)
    assert [shown(second, 0), shown(second, 1)] == [[5, 5], [5, 5]]


def test_the_address_stays_while_frames_change(frames: Frames) -> None:
    window = Window([(SLICE, frames.descriptor)], FRAME)
    address = window.memory.data_ptr()
    for numbers in ([0, 1], [2, 3], [0, 1], [0, 1]):
        window.open({0: numbers})
        assert shown(window, 0) == numbers
        window.close()
    assert window.memory.data_ptr() == address


def test_slices_open_one_by_one(frames: Frames) -> None:
    window = Window([(SLICE, frames.descriptor)] * 2, FRAME)
    window.open({1: [2, 3]})
    window.open({0: [0, 1]})
    assert [shown(window, 0), shown(window, 1)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("steps", ["", "window.open({0: [0, 1]}); window.close()"])
def test_what_is_not_shown_can_not_be_read(steps: str) -> None:
    source = f"""
from ciuic_dist.memory.frames import Frames, Window
frames = Frames({FRAME}, 6)
window = Window([({SLICE}, frames.descriptor)], {FRAME})
{steps}
print("there", flush=True)
print(window.memory.sum())
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.stdout == "there\n"
    assert done.returncode == -signal.SIGSEGV


def test_a_refused_mapping_is_an_error(frames: Frames) -> None:
    window = Window([(SLICE, frames.descriptor)], FRAME)
    frames.close()
    with pytest.raises(OSError, match="memory can't be shown: Bad file descriptor"):
        window.open({0: [0, 1]})


def test_frames_that_are_not_in_use_give_their_memory_back() -> None:
    frames = Frames(FRAME, 6)
    used = [frames.pool.alloc() for _ in range(6)]
    for number in used:
        frames.view(number, FRAME).fill_(number)
    assert os.fstat(frames.descriptor).st_blocks * 512 == 6 * FRAME
    for number in (1, 2, 5):
        frames.pool.free(number)
    frames.give_back()
    assert os.fstat(frames.descriptor).st_blocks * 512 == 3 * FRAME
    assert [set(frames.view(number, FRAME).tolist()) for number in range(6)] == [{0}, {0}, {0}, {3}, {4}, {0}]
