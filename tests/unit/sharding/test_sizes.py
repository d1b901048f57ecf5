"""Inputs are known to fit where none is larger than those that were met, in any dimension."""

from __future__ import annotations

import pytest

from ciuic_dist.sharding.sizes import KnownSizes, Sizes


def known(*met: Sizes) -> KnownSizes:
    made = KnownSizes()
    for sizes in met:
        made.add(sizes, gradients=True)
    return made


@pytest.mark.parametrize(
    ("sizes", "fit"),
    [
        (((4, 100), (4,)), True),
        (((2, 70), (1,)), True),
        (((4, 100),), True),  # one tensor less
        (((5, 100), (4,)), False),
        (((4, 101), (4,)), False),
        (((4, 100), (4,), (1,)), False),  # one more
        (((4, 100, 1), (4,)), False),
        ((), True),
    ],
)
def test_what_is_no_larger_fits(sizes: Sizes, fit: bool) -> None:
    assert known(((4, 100), (4,))).cover(sizes, gradients=True) is fit
    assert not KnownSizes().cover(sizes, gradients=True)


def test_two_that_fit_are_not_put_together() -> None:
    long, wide = ((2, 100),), ((16, 10),)
    assert known(long, wide).cover(long, gradients=True)
    assert known(long, wide).cover(wide, gradients=True)
    assert not known(long, wide).cover(((16, 100),), gradients=True)


def test_without_gradients_what_fits_with_them_fits_and_not_the_other_way() -> None:
    both = known(((4, 4),))
    both.add(((9, 9),), gradients=False)
    assert both.cover(((4, 4),), gradients=False)
    assert both.cover(((9, 9),), gradients=False)
    assert not both.cover(((9, 9),), gradients=True)


def test_slack_is_for_all_dimensions_together() -> None:
    some = known(((100, 100), (100,)))
    some.slack = 1.2
    assert some.cover(((120, 100), (110,)), gradients=True)
    assert some.cover(((109, 110), (1,)), gradients=True)
    assert not some.cover(((110, 110), (1,)), gradients=True)
    assert not some.cover(((121, 1), (1,)), gradients=True)
