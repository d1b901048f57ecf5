"""Where the blocks of an 8-bit column lie, and that a span comes back from any number of pages."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ciuic_dist.compress.blockwise import BLOCK, BLOCK_BYTES, SIGNED
from ciuic_dist.sharding.columns import ResidentColumn, opened
from ciuic_dist.sharding.quantized import BlockPlace, QuantizedColumn

CPU = torch.device("cpu")
PAGE = 1000
"""Bytes: 7 blocks, and 76 that stay unused."""


@pytest.mark.parametrize("blocks", [1, 6, 7, 8, 100])
@pytest.mark.parametrize("page", [None, PAGE])
def test_every_block_has_a_place_in_one_page(blocks: int, page: int | None) -> None:
    place = BlockPlace(blocks * BLOCK, page)
    stretches = list(place.stretches(0, blocks * BLOCK))
    assert sum(s.last - s.first for s in stretches) == blocks
    assert all(s.first < s.last <= s.blocks for s in stretches)
    assert all(s.high <= t.low for s, t in pairwise(stretches))
    assert stretches[-1].high <= place.nbytes < stretches[-1].high + BLOCK_BYTES
    if page is None:
        assert place.nbytes == blocks * BLOCK_BYTES
    else:
        assert all(s.low % page == 0 and s.high - s.low <= page for s in stretches)


@pytest.mark.parametrize("page", [None, PAGE])
def test_spans_come_back(page: int | None) -> None:
    spans = [(low, min(low + 16 * BLOCK, 100 * BLOCK)) for low in range(0, 100 * BLOCK, 16 * BLOCK)]
    place = BlockPlace(100 * BLOCK, page)
    stored = ResidentColumn(place.nbytes, torch.uint8, CPU)
    column = QuantizedColumn(stored, place, SIGNED, CPU)
    values = torch.randn(100 * BLOCK, generator=torch.Generator().manual_seed(0))
    for low, high in reversed(spans):
        with opened(column, low, high, dirty=True) as span:
            assert not span.any()
            span.copy_(values[low:high])
    for low, high in spans:
        with opened(column, low, high, dirty=False) as span:
            torch.testing.assert_close(span, values[low:high], rtol=0.5, atol=0.03)
            kept = span.clone()
            span.zero_()  # not dirty: it is forgotten
        with opened(column, low, high, dirty=True) as span:
            assert torch.equal(span, kept)
    assert column.nbytes == place.nbytes
    column.drop()
    with opened(column, *spans[0], dirty=False) as span:
        assert not span.any()
