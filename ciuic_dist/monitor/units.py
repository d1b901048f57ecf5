"""Bytes and seconds in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_UNITS: Final = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}


def size_text(nbytes: float, rounded: Callable[[float], int] = round) -> str:
    """Such as 77.00 GiB.

    ``rounded``: ``math.ceil`` for what is asked for, so that as much as it says is enough, ``math.floor`` for what
    there is: the two read differently wherever there is too little.
    """
    unit = next((unit for unit, size in _UNITS.items() if round(100 * nbytes / size) >= 100), "KiB")
    return f"{rounded(100 * nbytes / _UNITS[unit]) / 100:.2f} {unit}"


def duration_text(seconds: float) -> str:
    """Such as 1.25 s or 71.3 ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
