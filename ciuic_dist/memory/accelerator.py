"""A device with memory of its own, which computes while the host goes on."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.mapping import private
from ciuic_dist.monitor.units import size_text
from ciuic_dist.planning.pages import LARGEST_ON_ACCELERATORS

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
        if memory is None:  # made by no operator: what watches those must not take pages for activations
            storage = torch.UntypedStorage(self._slot_bytes, device=self._device)
            memory = self._slots[slot] = torch.empty(0, dtype=torch.uint8, device=self._device).set_(storage)
        return memory[:nbytes]

    def give_back(self, slots: Iterable[int]) -> None:
        """See Slab."""
        for slot in slots:
            self._slots[slot] = None


class Accelerator:
    """Any that torch.accelerator knows. Each thread that copies has a stream of its own.

    Memory is the computing stream's: a copy begins when that stream has come to its ``mark``, and whoever frees or
    uses what is copied waits on the host for the copy first. So no stream has to be recorded with any tensor.
    """

    is_host = False
    largest_page = LARGEST_ON_ACCELERATORS

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._computing = torch.accelerator.current_stream(device)
        self._of_thread = threading.local()
        self._registered: list[Tensor] = []
        self._close = weakref.finalize(self, _unregister, self._registered, device)
        self._close.atexit = False

    def slab(self, slots: int, slot_bytes: int) -> DeviceSlab:
        """See Device."""
        return DeviceSlab(slots, slot_bytes, self._device)

    def host_buffer(self, nbytes: int) -> Tensor:
        """See Device; it has memory at once. Raises BudgetError where the driver doesn't take so much."""
        buffer = private(nbytes)
        if self._device.type == "cuda":  # not pin_memory, which takes the next power of two
            with ThreadPoolExecutor(_THREADS, initializer=self._choose_device) as threads:
                list(threads.map(self._register, buffer.split(_REGISTERED_AT_ONCE)))
        return buffer

    def enter_thread(self) -> None:
        """See Device."""
        self._choose_device()
        self._of_thread.stream = torch.Stream(self._device)

    def mark(self) -> torch.Event:
        """See Device. Raises RuntimeError on another stream than at the start."""
        stream = torch.accelerator.current_stream(self._device)
        if stream != self._computing:
            raise RuntimeError(
                "within a budget the model has to compute on the stream that was current in cd.shard: "
                "call cd.shard, the model and the optimizer under the same torch.cuda.stream, or under none"
            )
        return stream.record_event()

    @contextmanager
    def beside(self, mark: torch.Event) -> Iterator[None]:
        """See Device."""
        with self._of_thread.stream as stream:
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

    def _choose_device(self) -> None:
        """For this thread, whose device is else the host's first."""
        torch.accelerator.set_device_index(self._device)

    def _register(self, part: Tensor) -> None:
        part.zero_()  # the kernel clears memory faster in many threads than the driver does in one
        error = torch.cuda.cudart().cudaHostRegister(part.data_ptr(), part.numel(), 0)
        if error.value:
            raise BudgetError(
                f"the driver doesn't register {size_text(part.numel())} of host memory ({error}): "
                f"give memory.host less, or raise the limit on locked memory (ulimit -l)"
            )
        self._registered.append(part)


def _unregister(parts: list[Tensor], device: torch.device) -> None:
    if parts:
        torch.accelerator.set_device_index(device)
    for part in parts:
        torch.cuda.cudart().cudaHostUnregister(part.data_ptr())
    parts.clear()
