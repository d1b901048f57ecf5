"""Which pages of a scan that repeats stay on the device, and which stream through a few slots. Integers only.

An optimizer goes through its pages in one order, step after step. Keeping the first pages and streaming the
rest would leave the link idle during the first and the computation idle during the rest; spread evenly, each
transfer has the time of the resident pages before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ciuic_dist.planning.two_tier import BudgetTooSmall


@dataclass(frozen=True, slots=True)
class Residency:
    """The places of a scan's items."""

    resident: tuple[bool, ...]
    """For each item in the order of use: whether it stays on the device for ever."""
    slots: int
    """How many places the others share, in turns; 0 where all are resident."""
    slot_size: int
    """Bytes of each: of the largest item that is not resident."""

    @property
    def spilled(self) -> tuple[int, ...]:
        """The items that stream, in the order of use: the i-th goes to slot ``i % slots``."""
        return tuple(item for item, stays in enumerate(self.resident) if not stays)


def spread(count: int, resident: int) -> tuple[bool, ...]:
    """For each of ``count`` equal items of a cycle whether it is among the ``resident`` that stay.

    The others are spread evenly: no two runs of them, also over the end of the cycle, differ by more than one.
    Raises ValueError unless 0 <= resident <= count.
    """
    if not 0 <= resident <= count:
        raise ValueError(f"{resident} of {count} items can't be resident")
    return tuple((item + 1) * resident // count > item * resident // count for item in range(count))


def place(sizes: Sequence[int], budget: int, slots: int = 2) -> Residency:
    """Which items, of ``sizes`` bytes in the order of use, stay within ``budget`` bytes.

    What doesn't stay streams through up to ``slots`` slots, which count against the budget; two let one item
    arrive while the one before is used. Raises BudgetTooSmall where not even the slots fit.
    """
    if sum(sizes) <= budget:
        return Residency((True,) * len(sizes), 0, 0)
    largest, slots = max(sizes), min(slots, len(sizes))
    left = budget - slots * largest
    if left < 0:
        raise BudgetTooSmall(budget, min(slots * largest, sum(sizes)))
    resident = stay(sizes, left)
    spilled = [size for size, stays in zip(sizes, resident, strict=True) if not stays]
    return Residency(resident, min(slots, len(spilled)), max(spilled))


def stay(sizes: Sequence[int], budget: int) -> tuple[bool, ...]:
    """Which items, of ``sizes`` bytes in the order of use, to keep within ``budget`` bytes, evenly spread.

    Error diffusion: each item earns its share of the budget, and stays once the earnings pay for it.
    """
    total, earned = sum(sizes), 0
    if total <= budget:
        return (True,) * len(sizes)
    if len(set(sizes)) == 1:
        return spread(len(sizes), budget // sizes[0])
    resident = []
    for size in sizes:
        earned += size * budget
        resident.append(earned >= size * total)
        if resident[-1]:
            earned -= size * total
    return tuple(resident)
