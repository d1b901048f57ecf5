"""One value for each element of a shard: gradients, low halves of masters, an optimizer's moments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ciuic_dist.memory.host import allocate
from ciuic_dist.memory.pager import Pager
from ciuic_dist.memory.table import Page


class Column(Protocol):
    """Worked on a span at a time, elements ``low`` to ``high``, between ``open`` and ``close``."""

    dtype: torch.dtype

    def open(self, low: int, high: int) -> Tensor:
        """The span's values on the device; undefined before they were first written."""
        ...

    def close(self, low: int, high: int, *, dirty: bool) -> None:
        """The span was used; ``dirty``: written to."""
        ...

    def drop(self) -> None:
        """The values are of no use any more."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that belong to this column alone."""
        ...


class ResidentColumn:
    """In memory of its own, made at first use and kept."""

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self._numel = numel
        self._device = device
        self._values: Tensor | None = None

    def open(self, low: int, high: int) -> Tensor:
        """A view."""
        if self._values is None:
            self._values = allocate(self._numel, self.dtype, self._device)
        return self._values[low:high]

    def close(self, low: int, high: int, *, dirty: bool) -> None:
        """Nothing moves."""

    def drop(self) -> None:
        """The memory is used again."""

    @property
    def nbytes(self) -> int:
        """Nothing before the first use."""
        return 0 if self._values is None else self._values.nbytes


class PagedColumn:
    """In pages; a span lies in one of them."""

    def __init__(self, name: str, numel: int, dtype: torch.dtype, pager: Pager) -> None:
        self.dtype = dtype
        self._pager = pager
        total = numel * dtype.itemsize
        size = pager.page_bytes
        self.pages = [
            Page(f"{name} page {number}", min(size, total - number * size)) for number in range(-(-total // size))
        ]

    def open(self, low: int, high: int) -> Tensor:
        """Pin the page."""
        page, start = self._place(low)
        return self._pager.pin(page).view(self.dtype)[start : start + high - low]

    def close(self, low: int, high: int, *, dirty: bool) -> None:
        """Let the page go."""
        self._pager.unpin(self._place(low)[0], dirty=dirty)

    def drop(self) -> None:
        """The pages' slots are free."""
        for page in self.pages:
            self._pager.drop(page)

    @property
    def nbytes(self) -> int:
        """The pager counts the pages."""
        return 0

    def _place(self, low: int) -> tuple[Page, int]:
        number, offset = divmod(low * self.dtype.itemsize, self._pager.page_bytes)
        return self.pages[number], offset // self.dtype.itemsize


@contextmanager
def opened(column: Column, low: int, high: int, *, dirty: bool) -> Iterator[Tensor]:
    """The span's values while the context lasts."""
    values = column.open(low, high)
    try:
        yield values
    finally:
        column.close(low, high, dirty=dirty)
