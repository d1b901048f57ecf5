"""Which pages of a scan that repeats stay on the device, and which stream through a few slots. Integers only.

An optimizer goes through its pages in one order, step after step. Keeping the first pages and streaming the
rest would leave the link idle during the first and the computation idle during the rest; spread evenly, each
transfer has the time of the resident pages before it.
"""

from __future__ import annotations

from collections.abc import Sequence

_CIRCLE = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
"""The golden ratio's part behind the point, of that circle (D. E. Knuth, The Art of Computer Programming, 6.4)."""


def spread(count: int, resident: int) -> tuple[bool, ...]:
    """For each of ``count`` equal items of a cycle whether it is among the ``resident`` that stay.

    The others are spread evenly: no two runs of them, also over the end of the cycle, differ by more than one.
    Raises ValueError unless 0 <= resident <= count.
    """
    if not 0 <= resident <= count:
        raise ValueError(f"{resident} of {count} items can't be resident")
    return tuple((item + 1) * resident // count > item * resident // count for item in range(count))


def first_to_stay(count: int, resident: int) -> set[int]:
    """Which ``resident`` of ``count`` equal items of a cycle stay; fewer of as many are always among more of them.

    The multiples of the golden ratio fill a circle evenly, however many there are (the three-gap theorem, V. T. Sos,
    1958): any number of the items whose multiples come first lies nearly evenly spread, at three distances.
    Raises ValueError unless 0 <= resident <= count.
    """
    if not 0 <= resident <= count:
        raise ValueError(f"{resident} of {count} items can't be resident")
    return set(sorted(range(count), key=lambda item: item * _GOLDEN % _CIRCLE)[:resident])


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
