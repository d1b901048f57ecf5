"""Device memory for parameters that come and go: frames that stay, shown wherever they are wanted.

Memory that is freed has to be found and cleared when it is taken again, which costs more than reading its content
from a drive. A frame stays, and only the addresses behind which it lies change; given back are frames only where
parameters are to have less memory than before.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from ciuic_dist.memory.mapping import anonymous_file, give_back, hide_at, private, reveal_at, shared, show_at
from ciuic_dist.memory.pool import SlotPool


class Frames:
    """Frames of ``frame_bytes`` each in a file without a name, which other processes can map as well.

    A frame takes memory from its first use on. ``view`` is for transfers; computations see frames in a Window.
    """

    def __init__(self, frame_bytes: int, frames: int) -> None:
        self.frame_bytes = frame_bytes
        self.pool = SlotPool(frames)
        self.descriptor = anonymous_file(frame_bytes * frames)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._memory = shared(self.descriptor, frame_bytes * frames)

    def view(self, frame: int, nbytes: int) -> Tensor:
        """The first bytes of a frame."""
        return self._memory[frame * self.frame_bytes :][:nbytes]

    def give_back(self) -> None:
        """Frames that are not in use take no memory until their next use; nobody may see them in a window."""
        for frame in self.pool.forget_free():
            give_back(self.view(frame, self.frame_bytes), from_file=True)

    def close(self) -> None:
        """Show no frame in a window any more."""
        self._close()


class Window:
    """Addresses that stay: ``memory`` is made of slices, whole pages of the processor's, end to end.

    Each slice shows frames of one file, or nothing: then an access ends the process.
    """

    def __init__(self, slices: Sequence[tuple[int, int]], frame_bytes: int) -> None:
        """``slices``: of each, its bytes and the descriptor of its file, which must stay open."""
        self._sizes = [nbytes for nbytes, _ in slices]
        self._starts = list(accumulate(self._sizes, initial=0))
        self._files = [descriptor for _, descriptor in slices]
        self._frame_bytes = frame_bytes
        self._frames: list[tuple[int, ...]] = [() for _ in slices]
        self._open: set[int] = set()
        self.memory = private(sum(self._sizes))
        hide_at(self.memory.data_ptr(), sum(self._sizes))

    def open(self, frames: Mapping[int, Sequence[int]]) -> None:
        """Show these frames, by slice. Raises OSError where the kernel refuses one mapping more."""
        for index, numbers in frames.items():
            if self._frames[index] != tuple(numbers):
                self._frames[index] = ()
                self._show(index, numbers)
                self._frames[index] = tuple(numbers)
            elif index not in self._open:
                reveal_at(self._address(index), self._sizes[index])
            self._open.add(index)

    def close(self) -> None:
        """Show nothing."""
        for index in self._open:
            hide_at(self._address(index), self._sizes[index])
        self._open.clear()

    def _address(self, index: int) -> int:
        return self.memory.data_ptr() + self._starts[index]

    def _show(self, index: int, frames: Sequence[int]) -> None:
        for place, frame in enumerate(frames):
            start = place * self._frame_bytes
            length = min(self._frame_bytes, self._sizes[index] - start)
            show_at(self._address(index) + start, length, self._files[index], frame * self._frame_bytes)
