"""A profile for any number of sequences, from those of two other numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.planning.profile import Pass, Profile, UnitProfile, extrapolate

UNITS = (UnitProfile("block", 3), UnitProfile("root", 4))
PARTS = st.tuples(st.integers(0, 100), st.integers(0, 100))
GROWING = ("flops", "saved", "inputs", "remade", "streamed", "touched", "above", "net", "seconds")


def of(parts: dict[str, tuple[int, int]], batch: int) -> Profile:
    """A forward with a fixed part and a part for each sequence, and a backward of the same."""
    costs: dict[str, Any] = {name: fixed + batch * each for name, (fixed, each) in parts.items()}
    forward = Pass(0, backward=False, ops=5, **costs)
    return Profile(UNITS, (forward, replace(forward, backward=True)))


@given(
    st.fixed_dictionaries(dict.fromkeys(GROWING, PARTS)), st.sampled_from([(1, 2), (2, 4), (4, 8)]), st.integers(1, 64)
)
def test_what_grows_evenly_is_exact(parts: dict[str, tuple[int, int]], counts: tuple[int, int], batch: int) -> None:
    few, many = (of(parts, count) for count in counts)
    assert extrapolate(few, many, counts, batch) == of(parts, batch)


@given(st.floats(1e-6, 10), st.floats(1e-6, 10), st.sampled_from([(1, 2), (2, 4), (4, 8)]), st.integers(1, 64))
def test_times_that_vary_give_times_that_can_be(few: float, many: float, counts: tuple[int, int], batch: int) -> None:
    one = of(dict.fromkeys(GROWING, (1, 1)), 1)
    first, second = (replace(one, passes=tuple(replace(p, seconds=s) for p in one.passes)) for s in (few, many))
    seconds = extrapolate(first, second, counts, batch).passes[0].seconds
    measured, count = (few, counts[0]) if batch < counts[1] else (many, counts[1])
    both_ends = sorted([measured, measured * batch / count])
    assert both_ends[0] * (1 - 1e-9) <= seconds <= both_ends[1] * (1 + 1e-9)


def test_another_order_is_refused() -> None:
    one = of(dict.fromkeys(GROWING, (1, 1)), 1)
    for other in (one.passes[::-1], one.passes[:1], (replace(one.passes[0], unit=1), one.passes[1])):
        with pytest.raises(ValueError, match="another order"):
            extrapolate(one, replace(one, passes=other), (1, 2), 4)
