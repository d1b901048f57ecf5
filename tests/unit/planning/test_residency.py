from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.planning.residency import place, spread, stay
from ciuic_dist.planning.two_tier import BudgetTooSmall

sizes_ = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def longest_spilled_run(resident: tuple[bool, ...]) -> int:
    """Over the end of the cycle too."""
    runs = [len(list(run)) for stays, run in groupby(resident + resident) if not stays]
    return min(max(runs, default=0), len(resident))


@given(st.integers(1, 60), st.data())
def test_spread_keeps_the_runs_of_spilled_items_as_short_as_can_be(count: int, data: st.DataObject) -> None:
    resident = data.draw(st.integers(0, count))
    kept = spread(count, resident)
    assert sum(kept) == resident
    spilled = count - resident
    assert longest_spilled_run(kept) == (-(-spilled // resident) if resident else count)


def test_spread_by_hand() -> None:
    assert spread(8, 3) == (False, False, True, False, False, True, False, True)


@pytest.mark.parametrize("resident", [-1, 4])
def test_spread_refuses_what_can_not_be(resident: int) -> None:
    with pytest.raises(ValueError, match="of 3 items"):
        spread(3, resident)


@given(sizes_, st.integers(0, 2000), st.integers(1, 4))
def test_place_never_exceeds_the_budget(sizes: list[int], budget: int, slots: int) -> None:
    needed = min(sum(sizes), min(slots, len(sizes)) * max(sizes))
    if budget < needed:
        with pytest.raises(BudgetTooSmall, match=f"smallest budget that works is {needed} bytes"):
            place(sizes, budget, slots)
        budget = needed
    places = place(sizes, budget, slots)
    resident = sum(size for size, stays in zip(sizes, places.resident, strict=True) if stays)
    assert resident + places.slots * places.slot_size <= budget
    assert all(sizes[item] <= places.slot_size for item in places.spilled)
    assert bool(places.spilled) == (sum(sizes) > budget) == (places.slots > 0)


@given(st.integers(1, 40), st.integers(1, 50), st.data())
def test_place_of_equal_items_wastes_less_than_an_item(count: int, size: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(2 * size, max(count * size, 2 * size)))
    places = place([size] * count, budget)
    assert sum(places.resident) * size + places.slots * size > min(budget, count * size) - size


@given(sizes_, st.integers(0, 2000))
def test_kept_bytes_run_along_with_the_budget(sizes: list[int], budget: int) -> None:
    kept = 0
    for item, stays in enumerate(stay(sizes, budget)):
        kept += sizes[item] * stays
        share = min(budget, sum(sizes)) * sum(sizes[: item + 1]) / sum(sizes)
        assert kept <= share + 1e-6, "ahead of its share"
        assert kept > share - max(sizes) - (0 if len(set(sizes)) > 1 else max(sizes)), "behind its share"
