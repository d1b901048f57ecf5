"""What an exchange does with units whose shards come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.homes import SpilledShard
from ciuic_dist.sharding.unit import Unit


def homes_of(unit: Unit) -> list[tuple[Flat, SpilledShard]]:
    """Its flats that have a home, with it."""
    return [(flat, flat.home) for flat in unit.flats if isinstance(flat.home, SpilledShard)]


def shards_of(unit: Unit) -> list[SpilledShard]:
    """The homes alone."""
    return [shard for _, shard in homes_of(unit)]


def take(unit: Unit) -> None:
    """Start to bring the unit's shards here."""
    for shard in shards_of(unit):
        shard.take()


def finish(unit: Unit) -> None:
    """They are here."""
    for shard in shards_of(unit):
        shard.finish()


def show(unit: Unit, frames: Callable[[Flat], Mapping[int, Sequence[int]]]) -> None:
    """The model sees its parameters; ``frames`` has the other ranks' as well, by rank."""
    for flat, shard in homes_of(unit):
        shard.show(frames(flat))
        flat.attach()


def show_own(unit: Unit) -> None:
    """The same where this rank's shards are all there is."""
    show(unit, lambda _: {})


def let_go(unit: Unit) -> None:
    """The model needs them no longer."""
    for flat, shard in homes_of(unit):
        flat.detach()
        shard.let_go()
