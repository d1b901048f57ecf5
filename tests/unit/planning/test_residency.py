from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.planning.residency import first_to_stay, spread, stay

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


@given(sizes_, st.integers(0, 2000))
def test_kept_bytes_run_along_with_the_budget(sizes: list[int], budget: int) -> None:
    kept = 0
    for item, stays in enumerate(stay(sizes, budget)):
        kept += sizes[item] * stays
        share = min(budget, sum(sizes)) * sum(sizes[: item + 1]) / sum(sizes)
        assert kept <= share + 1e-6, "ahead of its share"
        assert kept > share - max(sizes) - (0 if len(set(sizes)) > 1 else max(sizes)), "behind its share"


@given(st.integers(1, 300), st.data())
def test_the_first_to_stay_are_nested_and_nearly_even(count: int, data: st.DataObject) -> None:
    resident = data.draw(st.integers(1, count))
    chosen = sorted(first_to_stay(count, resident))
    assert len(chosen) == resident
    assert first_to_stay(count, resident - 1) < set(chosen)
    gaps = [after - before for before, after in pairwise(chosen)]
    assert (max(gaps, default=1) - 1) * resident < 2 * count


def test_no_more_can_stay_than_there_are() -> None:
    with pytest.raises(ValueError, match="4 of 3 items can't be resident"):
        first_to_stay(3, 4)
