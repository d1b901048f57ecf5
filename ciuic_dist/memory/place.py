"""The device's memory behind a shard that comes and goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, UntypedStorage

from ciuic_dist.memory.frames import Frames, Window


class Place(Protocol):
    """Has memory between ``take`` and ``give_back``; the model sees it between ``show`` and ``hide``."""

    nbytes: int

    def take(self) -> None:
        """Have memory, of any content."""
        ...

    def give_back(self) -> None:
        """Have none; nothing may be under way."""
        ...

    def pages(self) -> list[Tensor]:
        """The memory, page by page (1-D uint8)."""
        ...

    def show(self, others: Mapping[int, Sequence[int]] | None = None) -> None:
        """Have it at its address, and ``others``' frames at theirs."""
        ...

    def hide(self) -> None:
        """Nobody looks."""
        ...


class FramedPlace:
    """Frames, shown in a window as slice ``index`` of it."""

    def __init__(self, nbytes: int, frames: Frames, window: Window, index: int) -> None:
        self.nbytes = nbytes
        self.numbers: list[int] = []
        """Of the frames."""
        self._frames = frames
        self._window = window
        self._index = index

    def take(self) -> None:
        """See Place."""
        self.numbers = [self._frames.pool.alloc() for _ in range(-(-self.nbytes // self._frames.frame_bytes))]

    def give_back(self) -> None:
        """See Place."""
        for number in self.numbers:
            self._frames.pool.free(number)
        self.numbers = []

    def pages(self) -> list[Tensor]:
        """See Place."""
        size = self._frames.frame_bytes
        return [
            self._frames.view(frame, min(size, self.nbytes - number * size))
            for number, frame in enumerate(self.numbers)
        ]

    def show(self, others: Mapping[int, Sequence[int]] | None = None) -> None:
        """See Place. Raises OSError where the kernel refuses one mapping more."""
        self._window.open({**(others or {}), self._index: self.numbers})

    def hide(self) -> None:
        """See Place."""
        self._window.close()


class StoragePlace:
    """A storage, whose memory the allocator gives and takes. Views of it are at the right address while it is there."""

    def __init__(self, storage: UntypedStorage, page_bytes: int) -> None:
        """Frees the storage's memory, so all views that will be wanted are made: they can't be of nothing."""
        self.nbytes = storage.nbytes()
        self._storage = storage
        self._page_bytes = page_bytes
        storage.resize_(0)

    def take(self) -> None:
        """See Place."""
        self._storage.resize_(self.nbytes)

    def give_back(self) -> None:
        """See Place."""
        self._storage.resize_(0)

    def pages(self) -> list[Tensor]:
        """See Place."""
        whole = torch.empty(0, dtype=torch.uint8, device=self._storage.device).set_(self._storage)
        return list(whole.split(self._page_bytes))

    def show(self, others: Mapping[int, Sequence[int]] | None = None) -> None:
        """See Place."""

    def hide(self) -> None:
        """See Place."""
