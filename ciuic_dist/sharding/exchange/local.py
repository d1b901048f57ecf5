"""One process alone: the shard is the whole, gradients land where the optimizer reads them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ciuic_dist.memory.host import allocate
from ciuic_dist.sharding.exchange.base import Traffic
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.unit import Unit


class LocalExchange:
    """No peers, so nothing is exchanged."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.gathers = False
        self.keeps_full = True
        self.has_peers = False
        self._flats: Sequence[Flat] = ()

    def place(self, flats: Sequence[Flat]) -> None:
        """Give each flat memory; shard and full form are the same."""
        self._flats = flats
        for flat in flats:
            full = allocate(flat.layout.numel, flat.compute_dtype, flat.device)
            flat.place(full, full)

    def start_gather(self, unit: Unit) -> None:
        """Nothing to fetch."""

    def finish_gather(self, unit: Unit) -> None:
        """Nothing to wait for."""

    def release(self, unit: Unit) -> None:
        """Nothing to give back."""

    def begin(self, order: Sequence[Flat]) -> None:
        """Nothing to prepare."""

    def landing(self, flat: Flat) -> Tensor | None:
        """The gradient shard itself, to which the parameters reduced before keep adding."""
        flat.written = list(flat.touched)
        return flat.grad

    def submit(self, flat: Flat) -> None:
        """What is written is reduced."""
        flat.touched = [old or new for old, new in zip(flat.touched, flat.written, strict=True)]
        flat.landing = None
        flat.clear_written()

    def drain(self) -> None:
        """Nothing is under way."""

    def before_update(self) -> None:
        """No other reader."""

    def after_update(self) -> None:
        """No other reader."""

    def usage(self) -> int:
        """Bytes of all full forms."""
        return sum(flat.full_bytes for flat in self._flats)

    def close(self) -> None:
        """Nothing to let go."""
