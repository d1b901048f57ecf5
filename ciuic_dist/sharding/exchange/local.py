"""One process alone: the shard is the whole, gradients land where the optimizer reads them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ciuic_dist.memory.host import allocate
from ciuic_dist.sharding.exchange import spilled
from ciuic_dist.sharding.exchange.base import Traffic
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.spill import Spill
from ciuic_dist.sharding.unit import Unit


class LocalExchange:
    """No peers, so nothing is exchanged."""

    def __init__(self, spill: Spill | None = None) -> None:
        self.traffic = Traffic()
        self.gathers = spill is not None
        self.keeps_full = spill is None
        self._spill = spill
        self.in_step = False
        self.own_order = True
        self.together = False
        self.reduces_at_once = True
        self.has_peers = False
        self._flats: Sequence[Flat] = ()

    def place(self, flats: Sequence[Flat]) -> None:
        """Give each flat memory; shard and full form are the same."""
        self._flats = flats
        for flat in flats:
            if self._spill is not None and flat.spills:
                self._spill.house(flat)
            else:
                flat.place(allocate(flat.layout.numel, flat.compute_dtype, flat.device))

    def start_gather(self, unit: Unit) -> None:
        """Fetch what is away."""
        spilled.take(unit)

    def finish_gather(self, unit: Unit) -> None:
        """Wait for it."""
        spilled.finish(unit)
        spilled.show(unit)
        spilled.attach(unit)

    def has_room(self, unit: Unit) -> bool:
        """Within the budget."""
        return self._spill is None or self._spill.homes.has_room(spilled.shards_of(unit))

    def release(self, unit: Unit) -> None:
        """It may go away."""
        spilled.let_go(unit)

    def meet(self) -> None:
        """There is nobody to meet."""

    def begin(self, order: Sequence[Flat], *, last: bool) -> None:
        """Nothing to prepare."""

    def landing(self, flat: Flat) -> Tensor | None:
        """The gradient itself, to which the parameters reduced before keep adding; None where it is in pages."""
        if flat.paging is not None:
            return None
        flat.written = list(flat.touched)
        return flat.gradient.open(0, flat.layout.shard_numel)

    def submit(self, flat: Flat) -> None:
        """What is written is reduced."""
        sources = []
        if flat.paging is not None and flat.landing is not None:
            flat.zero_unwritten()
            sources = [flat.landing]
        written, flat.landing = flat.written, None
        flat.clear_written()
        flat.receive(sources, 1, written)

    def drain(self) -> None:
        """Nothing is under way."""

    def before_update(self) -> None:
        """No other reader."""

    def after_update(self) -> None:
        """No other reader."""

    def largest(self, number: int) -> int:
        """The only one."""
        return number

    def usage(self) -> int:
        """Bytes of all full forms that don't come and go."""
        return sum(flat.full_bytes for flat in self._flats if flat.home is None)

    def shared_bytes(self) -> int:
        """None."""
        return 0

    def close(self) -> None:
        """Nothing to let go."""
