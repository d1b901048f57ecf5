"""An fp32 master as a bf16 weight and the 16 bits below it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ciuic_dist.sharding.split import join, split

INFINITY, QUIET_NAN, SIGN = 0x7F800000, 0x7FC00000, -(1 << 31)
LOWS = torch.tensor([*range(0, 1 << 16, 61), 0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF], dtype=torch.int32)
UPPERS_AT_ONCE = 1 << 10


def halves(master: Tensor) -> tuple[Tensor, Tensor]:
    weight, low = torch.empty_like(master, dtype=torch.bfloat16), torch.empty_like(master, dtype=torch.int16)
    split(master, weight, low)
    return weight, low


def joined(weight: Tensor, low: Tensor) -> Tensor:
    master = torch.full_like(weight, 7.0, dtype=torch.float32)
    join(weight, low, master)
    return master


def patterns() -> Iterator[Tensor]:
    """Every upper half of an fp32 with each of ``LOWS``, as integers."""
    for first in range(0, 1 << 16, UPPERS_AT_ONCE):
        uppers = torch.arange(first, first + UPPERS_AT_ONCE, dtype=torch.int64) << 16
        yield (uppers[:, None] + LOWS).to(torch.int32).flatten()


def nans(bits: Tensor) -> Tensor:
    return (bits & ~SIGN) > INFINITY


def test_every_value_comes_back() -> None:
    for bits in patterns():
        expected = torch.where(nans(bits), bits & SIGN | QUIET_NAN, bits)
        back = joined(*halves(bits.view(torch.float32)))
        assert torch.equal(back.view(torch.int32), expected)


def test_the_weight_is_the_nearest_and_ties_go_away_from_zero() -> None:
    for bits in patterns():
        master = bits.view(torch.float32)
        weight, low = halves(master)
        found = weight.view(torch.int16)
        tie = (bits & 0xFFFF) == 0x8000
        usual = ~tie & ~nans(bits)
        assert torch.equal(found[usual], master.bfloat16().view(torch.int16)[usual])
        away = tie & ~nans(bits)
        assert torch.equal(found[away], ((bits[away] >> 16) + 1).to(torch.int16))
        assert bool(weight[nans(bits)].isnan().all())
        assert not low[nans(bits)].any()


@pytest.mark.parametrize(
    ("value", "weight", "low"),
    [
        (1.0, 0x3F80, 0),
        (-0.0, 0x8000, 0),
        (float("inf"), 0x7F80, 0),
        (float("-inf"), 0xFF80, 0),
        (torch.finfo(torch.float32).max, 0x7F80, -1),  # rounds to infinity
        (torch.finfo(torch.float32).smallest_normal / 2**23, 0, 1),  # the least denormal
        (1 + 2**-8, 0x3F81, -(1 << 15)),  # a tie
    ],
)
def test_halves_of(value: float, weight: int, low: int) -> None:
    upper, lower = halves(torch.tensor([value]))
    assert (int(upper.view(torch.int16)) & 0xFFFF, int(lower)) == (weight, low)
    assert joined(upper, lower).view(torch.int32).item() == torch.tensor(value).view(torch.int32).item()


@pytest.mark.parametrize("numel", [0, 1, 1 << 17, (1 << 17) + 1, 5 << 16])
def test_any_length_and_neighbours_stay(numel: int) -> None:
    master = torch.randn(numel + 2)
    master[numel // 2] = float("nan")
    weight, low = torch.zeros(numel + 2, dtype=torch.bfloat16), torch.zeros(numel + 2, dtype=torch.int16)
    split(master[1:-1], weight[1:-1], low[1:-1])
    assert weight[[0, -1]].tolist() == low[[0, -1]].tolist() == [0, 0]
    back = torch.zeros(numel + 2)
    join(weight[1:-1], low[1:-1], back[1:-1])
    assert torch.equal(back[1:-1].nan_to_num(3.0), master[1:-1].nan_to_num(3.0))
    assert back[[0, -1]].tolist() == [0, 0]
