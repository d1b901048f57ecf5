"""A device with memory of its own, which computes while the host goes on."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from ciuic_dist.memory.mapping import private

_REGISTERED_AT_ONCE = 256 << 20
"""Bytes, of whole pages: a copy can't go over the border of two registrations."""
_THREADS = 8


class DeviceSlab:
    """Slots of their own, so that the allocator can take each back."""

    def __init__(self, slots: int, slot_bytes: int, device: torch.device) -> None:
        self._slots: list[Tensor | None] = [None] * slots
        self._slot_bytes = slot_bytes
        self._device = device

    def view(self, slot: int, nbytes: int) -> Tensor:
        """See Slab."""
        memory = self._slots[slot]
        if memory is None:
            memory = self._slots[slot] = torch.empty(self._slot_bytes, dtype=torch.uint8, device=self._device)
        return memory[:nbytes]

    def give_back(self, slots: Iterable[int]) -> None:
        """See Slab."""
        for slot in slots:
            self._slots[slot] = None


class Accelerator:
    """Any that torch.accelerator knows. Copies down and up have a stream each.

    Memory is the computing stream's: a copy begins when that stream has come to its ``mark``, and whoever frees or
    uses what is copied waits on the host for the copy first. So no stream has to be recorded with any tensor.
    """

    is_host = False
    largest_page = 32 << 20

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._down, self._up = torch.Stream(device), torch.Stream(device)
        self._buffers: list[Tensor] = []
        self._close = weakref.finalize(self, _unregister, self._buffers)
        self._close.atexit = False

    def slab(self, slots: int, slot_bytes: int) -> DeviceSlab:
        """See Device."""
        return DeviceSlab(slots, slot_bytes, self._device)

    def host_buffer(self, nbytes: int) -> Tensor:
        """See Device. Raises RuntimeError where the driver can't register so much."""
        buffer = private(nbytes)
        if self._device.type == "cuda":  # not pin_memory, which takes the next power of two
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(_register, buffer.split(_REGISTERED_AT_ONCE)))
            self._buffers.append(buffer)
        return buffer

    def mark(self) -> torch.Event:
        """See Device."""
        return torch.accelerator.current_stream(self._device).record_event()

    @contextmanager
    def beside(self, mark: torch.Event, *, down: bool) -> Iterator[None]:
        """See Device."""
        stream = self._down if down else self._up
        with stream:
            stream.wait_event(mark)
            yield

    def taken(self) -> int:
        """See Device."""
        return torch.accelerator.memory_reserved(self._device)

    def give_back_freed(self) -> None:
        """See Device."""
        torch.accelerator.empty_cache()

    def close(self) -> None:
        """See Device."""
        self._close()


def _register(part: Tensor) -> None:
    part.zero_()  # the kernel clears memory faster in many threads than the driver does in one
    error = torch.cuda.cudart().cudaHostRegister(part.data_ptr(), part.numel(), 0)
    if error.value:
        raise RuntimeError(f"the driver can't register {part.numel()} bytes of host memory: {error}")


def _unregister(buffers: list[Tensor]) -> None:
    for buffer in buffers:
        for part in buffer.split(_REGISTERED_AT_ONCE):
            torch.cuda.cudart().cudaHostUnregister(part.data_ptr())
    buffers.clear()
