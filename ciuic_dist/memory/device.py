"""What spilling asks of the memory that computes, and the host's memory as such."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from ciuic_dist.memory.mapping import give_back, private
from ciuic_dist.memory.process import anonymous_bytes, return_freed_memory
from ciuic_dist.planning.pages import LARGEST_ON_HOSTS


class Slab(Protocol):
    """Slots of one size; a slot has memory from its first use on."""

    def view(self, slot: int, nbytes: int) -> Tensor:
        """The slot's first bytes, uint8."""
        ...

    def give_back(self, slots: Iterable[int]) -> None:
        """These have no memory until their next use, and no content."""
        ...


class Device(Protocol):
    """The memory that computes, and how copies from and to it stay in order with the computation."""

    is_host: bool
    """Whether the host's tier lies in the same memory."""
    largest_page: int
    """Bytes, from which larger copies are no quicker."""

    def slab(self, slots: int, slot_bytes: int) -> Slab:
        """Device memory for pages."""
        ...

    def host_buffer(self, nbytes: int) -> Tensor:
        """Host memory (1-D uint8) that copies from and to the device go through at full speed."""
        ...

    def mark(self) -> Any:
        """All that this thread has asked of the device until now, for ``beside``."""
        ...

    def enter_thread(self) -> None:
        """This thread will copy."""
        ...

    def beside(self, mark: Any) -> AbstractContextManager[None]:
        """Copies of this thread meanwhile come after ``mark``, beside the computation."""
        ...

    def taken(self) -> int:
        """Bytes of the device's memory that this process has, but for what it shares with others."""
        ...

    def give_back_freed(self) -> None:
        """Have allocators give back what they keep of freed memory."""
        ...

    def close(self) -> None:
        """Host buffers are of no use any more."""
        ...


class HostSlab:
    """Slots in one range of addresses."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._memory = private(slots * slot_bytes)

    def view(self, slot: int, nbytes: int) -> Tensor:
        """See Slab."""
        return self._memory[slot * self._slot_bytes :][:nbytes]

    def give_back(self, slots: Iterable[int]) -> None:
        """See Slab. Raises OSError."""
        for slot in slots:
            give_back(self.view(slot, self._slot_bytes), from_file=False)


class HostDevice:
    """The CPU computes, in this process's memory: whatever was asked of it is done."""

    is_host = True
    largest_page = LARGEST_ON_HOSTS

    def slab(self, slots: int, slot_bytes: int) -> HostSlab:
        """See Device."""
        return HostSlab(slots, slot_bytes)

    def host_buffer(self, nbytes: int) -> Tensor:
        """See Device."""
        return private(nbytes)

    def mark(self) -> None:
        """See Device."""

    def enter_thread(self) -> None:
        """See Device."""

    def beside(self, mark: Any) -> AbstractContextManager[None]:
        """See Device."""
        return nullcontext()

    def taken(self) -> int:
        """See Device."""
        return anonymous_bytes()

    def give_back_freed(self) -> None:
        """See Device."""
        return_freed_memory()

    def close(self) -> None:
        """See Device."""
