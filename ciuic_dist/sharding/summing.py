"""The mean of several buffers, in an order that doesn't depend on who computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 16
"""Elements summed at a time on a CPU: sources are read once from memory, intermediate sums stay in the cache."""


def mean_into(out: Tensor, sources: Sequence[Tensor], divisor: int, *, accumulate: bool) -> None:
    """Set ``out`` to (or add to it) the sum of ``sources``, first to last, divided by ``divisor``.

    All are 1-D and equally long; sums are taken in ``out``'s dtype whatever the sources' is.
    """
    if not sources:
        if not accumulate:
            out.zero_()
        return
    chunk = min(_CHUNK, out.numel()) if out.device.type == "cpu" else out.numel()
    scratch = torch.empty(chunk if accumulate else 0, dtype=out.dtype, device=out.device)
    for low in range(0, out.numel(), chunk):
        high = min(low + chunk, out.numel())
        target = scratch[: high - low] if accumulate else out[low:high]
        _sum(target, [source[low:high] for source in sources])
        target.div_(divisor)
        if accumulate:
            out[low:high].add_(target)


def _sum(target: Tensor, sources: Sequence[Tensor]) -> None:
    if len(sources) > 1 and sources[0].dtype == target.dtype:
        torch.add(sources[0], sources[1], out=target)
        rest = sources[2:]
    else:
        target.copy_(sources[0])
        rest = sources[1:]
    for source in rest:
        target.add_(source)
