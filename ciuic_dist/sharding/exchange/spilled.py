"""What an exchange does with units whose shards come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from ciuic_dist.memory.place import FramedPlace
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.homes import SpilledShard
from ciuic_dist.sharding.unit import Unit


def homes_of(unit: Unit) -> list[tuple[Flat, SpilledShard]]:
    """Its flats that have a home, with it."""
    return [(flat, flat.home) for flat in unit.flats if isinstance(flat.home, SpilledShard)]


def copies_of(flat: Flat) -> list[SpilledShard]:
    """What this rank has of the other ranks' slices."""
    return flat.home.copies if isinstance(flat.home, SpilledShard) else []


def shards_of(unit: Unit) -> list[SpilledShard]:
    """The homes alone, and the copies."""
    return [shard for flat, home in homes_of(unit) for shard in (home, *copies_of(flat))]


def frames_of(shard: SpilledShard) -> Sequence[int]:
    """What other ranks have to map to see it."""
    assert isinstance(shard.place, FramedPlace), f"{shard.name} can't be seen by other ranks"
    return shard.place.numbers


def take(unit: Unit) -> None:
    """Start to bring the unit's shards here: all of them, or none where that raises."""
    with ExitStack() as taken:
        for shard in shards_of(unit):
            shard.take()
            taken.callback(shard.let_go)
        taken.pop_all()


def arrived(unit: Unit) -> bool:
    """Whether ``finish`` would return at once."""
    return all(shard.arrived() for shard in shards_of(unit))


def finish(unit: Unit) -> None:
    """They are here."""
    for shard in shards_of(unit):
        shard.finish()


def show(unit: Unit) -> None:
    """The full forms are at their addresses, as far as they lie in this rank's memory."""
    for shard in shards_of(unit):
        shard.show()


def show_all(unit: Unit, frames: Callable[[Flat], Mapping[int, Sequence[int]]]) -> None:
    """The same where the rest lies in other ranks' memory, in these ``frames`` of each rank."""
    for flat, shard in homes_of(unit):
        shard.show(frames(flat))


def attach(unit: Unit) -> None:
    """The model sees its parameters."""
    for flat, _ in homes_of(unit):
        flat.attach()


def hide(unit: Unit) -> None:
    """The model sees its parameters no longer."""
    for flat, shard in homes_of(unit):
        flat.detach()
        shard.hide()


def let_go(unit: Unit) -> None:
    """Nor does it need them."""
    hide(unit)
    for shard in shards_of(unit):
        shard.let_go()
