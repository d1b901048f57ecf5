"""Pages in fewer bytes: every bit comes back, nothing grows, and what is no page is said to be none."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from ciuic_dist.compress.lossless import Buffer, decode, encode

ZSTD_MAGIC = 0xFD2FB528


def there_and_back(page: bytes, itemsize: int) -> tuple[str, Buffer]:
    """What ``page`` is stored as, once it is sure that it comes back and takes no more bytes."""
    codec, stored = encode(page, itemsize)
    into = bytearray(b"\xa5" * len(page))
    decode(codec, stored, into)
    assert into == page
    assert len(stored) <= len(page)
    return codec, stored


def patterns(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def content(values: Tensor) -> bytes:
    """The bytes of the values."""
    return bytes(values.detach().contiguous().view(-1).view(torch.uint8).numpy())


def ratio(*tensors: Tensor) -> float:
    """Bytes over bytes stored, each tensor a page."""
    pages = [(content(values), values.dtype.itemsize) for values in tensors]
    return sum(len(page) for page, _ in pages) / sum(len(there_and_back(*page)[1]) for page in pages)


@given(page=st.binary(max_size=300), times=st.sampled_from([1, 7, 100]), itemsize=st.integers(1, 17))
def test_any_bytes_come_back(page: bytes, times: int, itemsize: int) -> None:
    there_and_back(page * times, itemsize)


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("behind", range(8))
def test_bytes_behind_the_last_whole_element_come_back(itemsize: int, behind: int) -> None:
    page = bytes(4096) + bytes(patterns(behind))
    assert there_and_back(page, itemsize)[0] == "planes"


def test_every_bf16_comes_back() -> None:
    values = np.arange(1 << 16, dtype=np.uint16)
    assert there_and_back(values.tobytes(), 2)[0] == "planes"
    np.random.default_rng(0).shuffle(values)
    there_and_back(values.tobytes(), 2)


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_any_fp32_comes_back_from_among_weights(bits: list[int]) -> None:
    special = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 1, 0x80000000, 0x807FFFFF, *bits])
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0)).numpy().view(np.uint32)
    page = np.concatenate([weights, special.astype(np.uint32), weights]).tobytes()
    assert there_and_back(page, 4)[0] == "planes"


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 1.98), (torch.float32, 1.33)])
def test_an_exponent_that_all_have_costs_nothing(dtype: torch.dtype, least: float) -> None:
    seeded = torch.Generator().manual_seed(0)
    values, signs = torch.rand(1 << 16, generator=seeded), torch.randn(1 << 16, generator=seeded)
    assert ratio((1 + 0.99 * values).copysign(signs).to(dtype)) > least


def test_what_has_no_pattern_is_stored_as_it_is_and_not_copied() -> None:
    page = patterns(100_001).tobytes()
    codec, stored = there_and_back(page, 4)
    assert codec == "raw"
    assert stored is page


def test_a_page_of_nothing_and_one_of_zeros() -> None:
    assert there_and_back(b"", 4) == ("raw", b"")
    assert len(there_and_back(bytes(4 << 20), 4)[1]) < 1000


def test_a_trained_model_and_its_state_shrink() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    target = torch.randn(64, 64)
    for _ in range(150):
        inputs = torch.randn(256, 64)
        (model(inputs) - inputs @ target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    moments = [optimizer.state[parameter][key] for parameter in weights for key in ("exp_avg", "exp_avg_sq")]
    assert ratio(*(weight.bfloat16() for weight in weights)) >= 1.45
    assert ratio(*weights, *moments) >= 1.18


@given(where=st.floats(0, 1), flipped=st.integers(1, 255), kept=st.floats(0, 1), more=st.binary(min_size=1, max_size=9))
def test_damage_is_a_value_error_or_other_bytes(where: float, flipped: int, kept: float, more: bytes) -> None:
    page = content(torch.linspace(-1, 1, 500)) + b"end"
    _, stored = there_and_back(page, 4)
    damaged = bytearray(stored)
    damaged[int(where * (len(damaged) - 1))] ^= flipped
    with suppress(ValueError):
        decode("planes", damaged, bytearray(len(page)))
    for wrong in (stored[: int(kept * (len(stored) - 1))], bytes(stored) + more):
        with pytest.raises(ValueError, match="are no p"):
            decode("planes", wrong, bytearray(len(page)))


@pytest.mark.parametrize(
    ("codec", "stored", "message"),
    [
        ("lz77", b"abc", "'lz77', which is not known here"),
        ("raw", b"abc", "a page of 64 bytes is stored raw in 3"),
        ("planes", b"", "don't begin like one"),
        ("planes", b"\x03" + bytes(80), "don't begin like one"),
        ("planes", b"\x04" + bytes(9), "don't begin like one"),
        ("planes", b"\x04" + bytes(16), "no plane of 16"),
        ("planes", b"\x01\x20\x00\x00\x00" + bytes(32), "no plane of 64"),
        ("planes", b"\x01\xff\xff\xff\xff" + bytes(32), "lengths don't add up"),
        ("planes", b"\x02" + struct.pack("<II", 64, 0) + bytes(64), "lengths don't add up"),
    ],
    ids=["codec", "raw", "empty", "width", "header", "no frame", "no zstd", "too long", "longer than a plane"],
)
def test_what_was_never_stored_is_refused(codec: str, stored: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(codec, stored, bytearray(64))


def test_a_plane_that_claims_to_be_huge_is_refused_before_it_is_made() -> None:
    claims_a_terabyte = struct.pack("<IBQ", ZSTD_MAGIC, 0b1110_0000, 1 << 40) + b"\x03\x00\x00\x00"
    stored = b"\x01" + struct.pack("<I", len(claims_a_terabyte)) + claims_a_terabyte
    with pytest.raises(ValueError, match="no plane of 64"):
        decode("planes", stored, bytearray(64))


def test_a_plane_with_more_behind_it_is_refused() -> None:
    frame = encode(bytes(64), 1)[1][5:]
    stored = b"\x01" + struct.pack("<I", len(frame) + 1) + bytes(frame) + b"x"
    with pytest.raises(ValueError, match="no plane of 64"):
        decode("planes", stored, bytearray(64))


@pytest.mark.parametrize("itemsize", [0, -4])
def test_elements_have_a_size(itemsize: int) -> None:
    with pytest.raises(ValueError, match="an element a byte"):
        encode(b"abcd", itemsize)
