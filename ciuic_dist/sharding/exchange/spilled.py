"""What an exchange does with units whose shards come and go."""

from __future__ import annotations

from ciuic_dist.sharding.homes import SpilledShard
from ciuic_dist.sharding.unit import Unit


def shards_of(unit: Unit) -> list[SpilledShard]:
    """Of its flats that have a home."""
    return [flat.home for flat in unit.flats if isinstance(flat.home, SpilledShard)]


def take(unit: Unit) -> None:
    """Start to bring the unit's shards here."""
    for shard in shards_of(unit):
        shard.take()


def finish(unit: Unit) -> None:
    """They are here: the model may see its parameters."""
    for shard in shards_of(unit):
        shard.finish()


def attach(unit: Unit) -> None:
    """The model sees its parameters."""
    for flat in unit.flats:
        if flat.home is not None:
            flat.attach()


def let_go(unit: Unit) -> None:
    """The model needs them no longer."""
    for flat in unit.flats:
        if flat.home is not None:
            flat.detach()
    for shard in shards_of(unit):
        shard.let_go()
