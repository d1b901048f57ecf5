"""What one training step touches, in order. The step repeats, so the operations are a cycle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any


class Kind(StrEnum):
    """What an item holds."""

    PARAMETER = "parameter"
    STATE = "state"
    GRADIENT = "gradient"


@dataclass(frozen=True, slots=True)
class Item:
    """What moves between tiers as a whole: a page, or the parameters of a unit."""

    name: str
    size: int
    """Bytes."""
    kind: Kind


@dataclass(frozen=True, slots=True)
class Op:
    """A stretch of computation and the items, by index, that lie on the device while it runs."""

    name: str
    """Operations of one name that follow each other are parts of one whole (the pages of a unit's update)."""
    uses: tuple[int, ...] = ()
    dirties: tuple[int, ...] = ()
    """Those of ``uses`` that it changes."""
    creates: tuple[int, ...] = ()
    """Those of ``uses`` whose old content it doesn't need: they need room, but no fetch."""
    discards: tuple[int, ...] = ()
    """Those of ``uses`` that nobody needs afterwards: their room is free, and they are not written back."""
    seconds: float = 0.0
    flops: float = 0.0
    touched: float = 0.0
    """Bytes that it reads from and writes to device memory."""


@dataclass(frozen=True)
class Trace:
    """The operations of one step, or of several with different routing, that repeat for ever."""

    items: tuple[Item, ...]
    ops: tuple[Op, ...]
    transient: int = 0
    """Bytes, at the peak, that lie on the device beside the items: activations and buffers."""
    steps: int = 1
    """Training steps in one round of ``ops``."""

    def __post_init__(self) -> None:
        """Check the indices. Raises ValueError."""
        if not self.ops:
            raise ValueError("a trace needs at least one operation")
        for op in self.ops:
            if len(set(op.uses)) != len(op.uses) or not set(op.uses) <= set(range(len(self.items))):
                raise ValueError(f"{op.name} uses an item twice or one that is not there: {op.uses}")
            if not {*op.dirties, *op.creates, *op.discards} <= set(op.uses):
                raise ValueError(f"{op.name} dirties, creates or discards an item that it doesn't use")

    @property
    def size(self) -> int:
        """Bytes of all items together."""
        return sum(item.size for item in self.items)

    @property
    def largest(self) -> int:
        """Bytes of the items of the operation that needs most: no smaller room can run the trace."""
        return max(self.bytes_of(op.uses) for op in self.ops)

    def bytes_of(self, items: Iterable[int]) -> int:
        """Bytes of these items together."""
        return sum(self.items[item].size for item in items)

    @cached_property
    def accesses(self) -> tuple[tuple[int, int], ...]:
        """(operation, item) in the order of use."""
        return tuple((index, item) for index, op in enumerate(self.ops) for item in op.uses)

    @cached_property
    def uses(self) -> tuple[tuple[int, ...], ...]:
        """For each item the operations that use it, in order."""
        found: list[list[int]] = [[] for _ in self.items]
        for op, item in self.accesses:
            found[item].append(op)
        return tuple(map(tuple, found))

    def to_json(self) -> str:
        """Text that `from_json` reads back."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """A trace from `to_json`. Raises KeyError, TypeError or ValueError where it is none."""
        fields = json.loads(text)
        items = tuple(Item(i["name"], i["size"], Kind(i["kind"])) for i in fields.pop("items"))
        ops = tuple(_op(op) for op in fields.pop("ops"))
        return cls(items, ops, **fields)


def _op(fields: dict[str, Any]) -> Op:
    """JSON has no tuples."""
    tuples: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Op(**fields | tuples)
