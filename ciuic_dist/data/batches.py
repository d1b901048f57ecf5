"""Batches addressed by one global sample counter.

Which sequence is the n-th sample depends on the seed and on n alone, so any number of ranks with
any micro-batch sees the same samples in the same global batch, and a resume needs only n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Batches:
    """An endless stream of the ``len(self)`` non-overlapping sequences in ``tokens``.

    ``tokens`` is 1-D, uint8 or int32; what doesn't fill a sequence at its end is unused.
    Each epoch has every sequence once, in an order of its own where ``shuffle`` is set.
    Raises ValueError where ``tokens`` is shorter than one sequence or ``seed`` is negative.
    """

    def __init__(self, tokens: Tensor, sequence_length: int, seed: int, shuffle: bool = True) -> None:
        count = tokens.numel() // sequence_length
        if not count:
            raise ValueError(f"{tokens.numel()} tokens are fewer than one sequence of {sequence_length}")
        if seed < 0:
            raise ValueError(f"the seed is {seed}; give 0 or more")
        self._sequences = tokens[: count * sequence_length].view(count, sequence_length)
        self._seed = seed
        self._shuffle = shuffle
        self._epoch: int | None = None
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._sequences)

    def sample(self, counter: int) -> Tensor:
        """The sequence of global sample ``counter``: int64 [sequence_length]."""
        return self._gather(np.array([counter]))[0]

    def micro_batches(
        self, counter: int, *, global_batch: int, micro_batch: int, rank: int, world: int
    ) -> list[dict[str, Tensor]]:
        """This rank's micro-batches of the global batch that begins at sample ``counter``.

        Micro-batch m of rank r holds samples ``counter + (m * world + r) * micro_batch`` and on.
        Each is {"input_ids", "labels"}: one int64 [micro_batch, sequence_length] under both names
        (a causal LM shifts its labels itself). Raises ValueError where the batch can't be divided so.
        """
        micros = accumulation(global_batch=global_batch, micro_batch=micro_batch, world=world)
        counters = counter + np.arange(global_batch).reshape(micros, world, micro_batch)[:, rank]
        rows = self._gather(counters.reshape(-1)).view(micros, micro_batch, -1)
        return [{"input_ids": ids, "labels": ids} for ids in rows.unbind()]

    def _gather(self, counters: NDArray[np.int64]) -> Tensor:
        epochs, places = np.divmod(counters, len(self))
        if self._shuffle:
            for epoch in np.unique(epochs):
                inside = epochs == epoch
                places[inside] = self._permutation(int(epoch))[places[inside]]
        return self._sequences[torch.from_numpy(places)].long()

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        # One epoch is kept: the counter only moves on, and drawing one takes time in large data.
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self))
            self._epoch = epoch
        return self._order


def accumulation(*, global_batch: int, micro_batch: int, world: int) -> int:
    """Micro-batches a rank has in a step. Raises ValueError that names good values where there is no whole number."""
    if min(global_batch, micro_batch, world) < 1:
        raise ValueError(
            f"train.global_batch={global_batch}, train.micro_batch={micro_batch}, {world} ranks: each must be 1 or more"
        )
    share = micro_batch * world
    micros, rest = divmod(global_batch, share)
    if not rest:
        return micros
    batches = " or ".join(str(n * share) for n in (micros, micros + 1) if n)
    hint = f"set train.global_batch to {batches}"
    if global_batch % world == 0:
        each = global_batch // world
        good = ", ".join(str(n) for n in range(1, each + 1) if each % n == 0)
        hint += f", or train.micro_batch to one of {good}"
    raise ValueError(
        f"train.global_batch={global_batch} sequences can't be divided among {world} ranks "
        f"in micro-batches of {micro_batch}: {hint}"
    )
