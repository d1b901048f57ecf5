"""The largest size that works. Pure."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], first: int, most: int, tolerance: float) -> int:
    """The largest size of 1 to `most` that `fits`, 0 if none does; the next one tried was at most `tolerance` larger.

    Whatever is smaller than a size that fits must fit as well. Doubles from `first`, then halves the interval.
    """
    low, high = 0, min(first, most)
    while fits(high):
        low = high
        if low == most:
            return most
        high = min(2 * high, most)
    while high - low > max(1, int(tolerance * low)):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
