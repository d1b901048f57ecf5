"""Eight bits a value: how far values are off, which are exact, and that nothing drifts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ciuic_dist.compress.blockwise import BLOCK, SIGNED, UNSIGNED, Code, dequantize, quantize

Stored = tuple[Tensor, Tensor]
both = pytest.mark.parametrize("code", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])


def stored(values: Tensor, code: Code) -> Stored:
    codes = torch.empty(values.numel() // BLOCK, BLOCK, dtype=torch.uint8)
    scales = torch.empty(values.numel() // BLOCK)
    quantize(values, code, codes, scales)
    return codes, scales


def read(found: Stored, code: Code) -> Tensor:
    values = torch.empty(found[0].numel())
    dequantize(*found, code, values)
    return values


def normal(numel: int, code: Code, seed: int = 0) -> Tensor:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    return values if code.signed else values.square()


def any_block(numbers: list[float], code: Code) -> Tensor:
    """The numbers over and over, so that they lie in any cell of a block."""
    values = torch.tensor(numbers, dtype=torch.float32).repeat(BLOCK)[:BLOCK]
    return values if code.signed else values.abs()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@both
@given(numbers=st.lists(finite, min_size=1, max_size=BLOCK))
def test_what_was_read_is_stored_the_same(code: Code, numbers: list[float]) -> None:
    first = stored(any_block(numbers, code), code)
    again = stored(read(first, code), code)
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1], first[1])


@both
def test_every_code_comes_back_at_every_scale(code: Code) -> None:
    for exponent in range(-100, 128):
        values = torch.zeros(2 * BLOCK)
        values[: len(code.values)] = code.values * 2.0**exponent
        values[0] = values[-1] = 2.0**exponent  # either block has the largest
        codes, scales = stored(values, code)
        assert torch.equal(codes.flatten()[1 : len(code.values)], torch.arange(1, len(code.values)).to(torch.uint8))
        assert torch.equal(read((codes, scales), code), values)


@both
@given(numbers=st.lists(finite, min_size=1, max_size=BLOCK))
def test_every_value_becomes_the_nearest_code(code: Code, numbers: list[float]) -> None:
    values = any_block(numbers, code)
    codes, scales = stored(values, code)
    quotients = values / scales
    off = (code.values[codes.flatten().long()] - quotients).abs()
    nearest = (code.values[:, None] - quotients).abs().amin(0)
    kept = (codes.flatten() == 1) & (quotients > 0) & (not code.signed)  # not rounded to zero
    assert torch.all((off <= nearest * (1 + 1e-6)) | kept)


@both
def test_blocks_are_off_by_half_the_widest_gap_at_most(code: Code) -> None:
    values = normal(1 << 16, code)
    blocks = values.view(-1, BLOCK)
    widest = code.values.diff().amax()
    off = (read(stored(values, code), code).view(-1, BLOCK) - blocks).abs().amax(1) / blocks.abs().amax(1)
    assert off.amax() <= widest / 2 * (1 + 1e-6)
    assert off.amax() > widest / 2 * 0.9  # the bound is near


@both
def test_zeros_and_the_largest_are_exact(code: Code) -> None:
    values = normal(4 * BLOCK, code)
    values[::3] = 0
    values[BLOCK : 2 * BLOCK] = 0
    found = read(stored(values, code), code).view(-1, BLOCK)
    blocks = values.view(-1, BLOCK)
    assert torch.all(found[blocks == 0] == 0)
    largest = blocks.abs().argmax(1, keepdim=True)
    assert torch.equal(found.gather(1, largest), blocks.gather(1, largest))


@pytest.mark.parametrize("small", [1e-45, 1e-38, 1e-20, 1e-8])
def test_the_unsigned_code_rounds_nothing_to_zero(small: float) -> None:
    values = torch.full((BLOCK,), small)
    for largest in (small, 5e-39, 1.0):
        values[5] = largest
        assert read(stored(values, UNSIGNED), UNSIGNED).amin().item() >= min(small, 1e-7 * largest) * (1 - 1e-6) > 0


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0])
def test_a_block_that_cannot_be_kept_is_nan_and_the_others_are_not(code: Code, bad: float) -> None:
    values = normal(3 * BLOCK, code)
    values[BLOCK + 7] = bad
    first = stored(values, code)
    found = read(first, code).view(3, BLOCK)
    assert torch.isfinite(found[[0, 2]]).all()
    assert found[1].isnan().all() or (code.signed and bad == -1.0)
    again = stored(found.flatten(), code)
    assert torch.equal(again[0], first[0])
    torch.testing.assert_close(again[1], first[1], rtol=0, atol=0, equal_nan=True)


@both
def test_a_block_does_not_depend_on_the_others(code: Code) -> None:
    values = normal(5000 * BLOCK, code)
    codes, scales = stored(values, code)
    for begin, end in ((0, 1), (1023, 1026), (4999, 5000)):
        part = stored(values[begin * BLOCK : end * BLOCK], code)
        assert torch.equal(part[0], codes[begin:end])
        assert torch.equal(part[1], scales[begin:end])


@both
def test_half_a_percent_of_normal_values_is_lost(code: Code) -> None:
    values = normal(1 << 18, code)
    off = (read(stored(values, code), code) - values).norm() / values.norm()
    assert off < (0.011 if code.signed else 0.0065)
