"""The values that an optimizer works on, in its own precision, beside the shard that the model computes with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ciuic_dist.sharding.columns import Column
from ciuic_dist.sharding.split import join, split


class Master(Protocol):
    """Worked on a span at a time; the shard must be on the device meanwhile."""

    def open(self, low: int, high: int) -> Tensor:
        """The span's values, to read and to write until ``close``."""
        ...

    def close(self, low: int, high: int, values: Tensor, *, dirty: bool) -> None:
        """Take what ``open`` gave back; ``dirty``: it was written to, so the shard follows."""
        ...

    def forget(self) -> None:
        """No value is of use any more."""
        ...

    def empty(self, low: int, high: int) -> Tensor:
        """A stand-in for the span while it isn't open: dtype, shape and device, no values."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of device memory besides the shard."""
        ...


class ShardMaster:
    """The shard itself."""

    nbytes = 0

    def __init__(self, shard: Tensor, *, stays: bool) -> None:
        self._shard = shard
        self._stays = stays

    def open(self, low: int, high: int) -> Tensor:
        """A view."""
        return self._shard[low:high]

    def close(self, low: int, high: int, values: Tensor, *, dirty: bool) -> None:
        """It was written in place."""

    def forget(self) -> None:
        """There is nothing beside the shard."""

    def empty(self, low: int, high: int) -> Tensor:
        """The view, where it may always be read; else one zero for all elements."""
        return self._shard[low:high] if self._stays else _zeros(high - low, self._shard.dtype, self._shard.device)


class SplitMaster:
    """fp32 values of which a bf16 shard is the upper half; ``low`` keeps the other 16 bits."""

    def __init__(self, shard: Tensor, low: Column) -> None:
        self._shard = shard
        self._low = low

    def open(self, low: int, high: int) -> Tensor:
        """The halves joined, in memory of its own. Before the first ``close`` the values are undefined."""
        values = torch.empty(high - low, dtype=torch.float32, device=self._shard.device)
        join(self._shard[low:high], self._low.open(low, high), values)
        return values

    def close(self, low: int, high: int, values: Tensor, *, dirty: bool) -> None:
        """Split anew."""
        if dirty:
            split(values, self._shard[low:high], self._low.open(low, high))
            self._low.close(low, high, dirty=True)
        self._low.close(low, high, dirty=dirty)

    def forget(self) -> None:
        """The low halves are of no use any more."""
        self._low.drop()

    def empty(self, low: int, high: int) -> Tensor:
        """One zero for all elements."""
        return _zeros(high - low, torch.float32, self._shard.device)

    @property
    def nbytes(self) -> int:
        """Of the low halves."""
        return self._low.nbytes


class WideMaster:
    """Values in another precision than the shard's, whole beside it."""

    def __init__(self, shard: Tensor, values: Column) -> None:
        self._shard = shard
        self._values = values

    def open(self, low: int, high: int) -> Tensor:
        """The column's span."""
        return self._values.open(low, high)

    def close(self, low: int, high: int, values: Tensor, *, dirty: bool) -> None:
        """Round them into the shard."""
        if dirty:
            self._shard[low:high].copy_(values)
        self._values.close(low, high, dirty=dirty)

    def forget(self) -> None:
        """The column is of no use any more."""
        self._values.drop()

    def empty(self, low: int, high: int) -> Tensor:
        """One zero for all elements."""
        return _zeros(high - low, self._values.dtype, self._shard.device)

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return self._values.nbytes


def _zeros(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device).expand(numel)
