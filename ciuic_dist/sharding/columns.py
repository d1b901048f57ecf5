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
        """No value is of use any more."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that belong to this column alone."""
        ...


class GradientColumn(Column, Protocol):
    """Used anew in each step."""

    def use_up(self, high: int) -> None:
        """The values up to element ``high`` are of no use any more; called with the ends of spans in order."""
        ...

    def scale(self, factor: float) -> None:
        """Multiply all values, now or when they are next used."""
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

    def use_up(self, high: int) -> None:
        """The memory is used again."""

    def drop(self) -> None:
        """The memory is used again."""

    def scale(self, factor: float) -> None:
        """Now."""
        if self._values is not None:
            self._values.mul_(factor)

    @property
    def nbytes(self) -> int:
        """Nothing before the first use."""
        return 0 if self._values is None else self._values.nbytes


class PagedColumn:
    """In pages; a span lies in one of them."""

    def __init__(self, name: str, numel: int, dtype: torch.dtype, pager: Pager) -> None:
        self.dtype = dtype
        self._pager = pager
        self._nbytes = total = numel * dtype.itemsize
        size = pager.page_bytes
        self.pages = [
            Page(f"{name} page {number}", min(size, total - number * size)) for number in range(-(-total // size))
        ]
        pager.add(self.pages)
        self._factors: dict[int, list[float]] = {}  # that pages have still to be multiplied by

    def open(self, low: int, high: int) -> Tensor:
        """Pin the page."""
        number, start = self._place(low)
        values = self._pager.pin(self.pages[number]).view(self.dtype)
        for factor in self._factors.pop(number, ()):
            values.mul_(factor)
            self.pages[number].dirty = True
        return values[start : start + high - low]

    def close(self, low: int, high: int, *, dirty: bool) -> None:
        """Let the page go."""
        self._pager.unpin(self.pages[self._place(low)[0]], dirty=dirty)

    def use_up(self, high: int) -> None:
        """The slot of the page that ends here is free."""
        number, _ = self._place(high - 1)
        if high * self.dtype.itemsize in ((number + 1) * self._pager.page_bytes, self._nbytes):
            self._factors.pop(number, None)
            self._pager.drop(self.pages[number])

    def drop(self) -> None:
        """The pages' slots are free."""
        self._factors.clear()
        for page in self.pages:
            self._pager.drop(page)

    def scale(self, factor: float) -> None:
        """When a page is next used: bringing all here now would move them twice."""
        for number in range(len(self.pages)):
            self._factors.setdefault(number, []).append(factor)

    @property
    def nbytes(self) -> int:
        """The pager counts the pages."""
        return 0

    def _place(self, low: int) -> tuple[int, int]:
        number, offset = divmod(low * self.dtype.itemsize, self._pager.page_bytes)
        return number, offset // self.dtype.itemsize


@contextmanager
def opened(column: Column, low: int, high: int, *, dirty: bool) -> Iterator[Tensor]:
    """The span's values while the context lasts."""
    values = column.open(low, high)
    try:
        yield values
    finally:
        column.close(low, high, dirty=dirty)
