"""Where the full forms of units that come and go lie, and the shards that they are made of."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ciuic_dist.memory.frames import Frames, Window
from ciuic_dist.memory.place import FramedPlace, Place, StoragePlace
from ciuic_dist.planning.pages import PAGED_SHARD_MULTIPLE
from ciuic_dist.sharding.flat import Flat


@dataclass(frozen=True, slots=True)
class Housed:
    """What a flat's memory lies in: this rank's shard, and ``copies``, what it has of the other ranks' slices.

    ``sizes`` are the bytes of each copy, on every rank.
    """

    own: Place
    copies: Sequence[Place] = ()
    sizes: Sequence[Sequence[int]] = ()


class WindowHousing:
    """In the host's memory: frames that stay, mapped at the full form's address while it is used."""

    is_private = False

    def __init__(self, page_bytes: int, frames: int) -> None:
        self.frames = Frames(page_bytes, frames)

    def alone(self, flat: Flat) -> Housed:
        """Place all of the flat in frames of this rank's own."""
        world, file = flat.layout.world, self.frames.descriptor
        own = flat.full_bytes // world
        sizes = [[rank * own, (world - 1 - rank) * own] for rank in range(world)]
        before, after = sizes[flat.owner]
        window = Window([(before, file), (own, file), (after, file)], self.frames.frame_bytes)
        copies = [self._place(nbytes, window, index) for index, nbytes in ((0, before), (2, after)) if nbytes]
        flat.place(_full(flat, window))
        return Housed(self._place(own, window, 1), copies, sizes)

    def shared(self, flat: Flat, files: Sequence[int]) -> Housed:
        """Place each slice in its rank's frames, in these ``files`` of all ranks that have a part of it."""
        nbytes = flat.full_bytes // flat.layout.world
        window = Window([(nbytes, file) for file in files], self.frames.frame_bytes)
        flat.place(_full(flat, window))
        return Housed(self._place(nbytes, window, flat.owner))

    def give_back(self) -> None:
        """Frames that are not in use take no memory."""
        self.frames.give_back()

    def close(self) -> None:
        """Nothing is used any more."""
        self.frames.close()

    def _place(self, nbytes: int, window: Window, index: int) -> FramedPlace:
        return FramedPlace(nbytes, self.frames, window, index)


class StorageHousing:
    """In memory that the allocator gives when it is wanted; a shard that isn't all of its flat lies beside it."""

    is_private = True

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes

    def alone(self, flat: Flat) -> Housed:
        """Place all of the flat in memory of this rank's own."""
        full = torch.empty(flat.layout.numel, dtype=flat.compute_dtype, device=flat.device)
        if flat.layout.world == 1:
            flat.place(full)
            return Housed(self._place(full))
        shard = torch.empty(flat.layout.shard_numel, dtype=flat.compute_dtype, device=flat.device)
        flat.place(full, shard)
        own, copy = self._place(shard), self._place(full)
        return Housed(own, [copy], [[copy.nbytes]])

    def give_back(self) -> None:
        """It is the allocator's."""

    def close(self) -> None:
        """Nothing is used any more."""

    def _place(self, memory: Tensor) -> StoragePlace:
        return StoragePlace(memory.untyped_storage(), self._page_bytes)


def _full(flat: Flat, window: Window) -> Tensor:
    return window.memory[: flat.full_bytes].view(flat.compute_dtype)


def shows_frames(device: torch.device) -> bool:
    """Whether frames can be mapped where full forms are: in the host's memory, where shards are whole pages of it."""
    return device.type == "cpu" and mmap.PAGESIZE <= PAGED_SHARD_MULTIPLE
