"""Pages in fewer bytes, every bit kept: byte planes and zstd.

Hershcovitch and others, ZipNN: Lossless Compression for AI Models (arXiv:2411.05239): a trained tensor's exponents
take few values, its mantissas nearly all. So every element is rotated left by a bit, which brings the exponent of bf16
and fp32 into the highest byte and the sign to the mantissa; then the highest bytes of all elements are stored
together, the next ones, and so on. A plane that zstd doesn't shrink is stored as it is, and so is a page of only such.

A page in planes begins with a byte, the width of its elements, and four bytes for each plane, the length that it is
stored in. The planes follow, the highest first, and what is behind the last whole element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Codec = Literal["raw", "planes"]
RAW: Final[Codec] = "raw"
PLANES: Final[Codec] = "planes"
CODECS: Final = (RAW, PLANES)
Buffer = bytes | bytearray | memoryview
Words = NDArray[Any]  # unsigned

_WIDTHS: Final = (8, 4, 2, 1)
_LENGTH: Final = np.dtype("<u4")
_CHUNK: Final = 1 << 16
"""Bytes that are worked on at once: temporary values stay in the processor's cache, and in memory that is there."""
_WINDOW_LOG: Final = 20
_HASH_LOG: Final = 6
"""Next to no memory of what was seen: runs are found still, and what else matches in exponents is chance. Such
matches take longer to find and more bytes to say than the literals that they replace."""


def encode(page: Buffer, itemsize: int) -> tuple[Codec, Buffer]:
    """How ``page`` is stored, whose elements have ``itemsize`` bytes, and as what: never more bytes than it has.

    "raw" gives ``page`` itself, no copy. Elements that are no machine words are taken for several. What it works with
    is up to three times the page.
    Raises ValueError for an ``itemsize`` below 1, or a page of 4 GiB or more.
    """
    whole = memoryview(page).cast("B")
    if itemsize < 1 or len(whole) >> 32:
        raise ValueError(f"{len(whole)} bytes, {itemsize} an element: a page has less than 4 GiB, an element a byte")
    width = next(width for width in _WIDTHS if itemsize % width == 0)
    words, tail = _split(whole, width)
    compress = _compressor()
    planes: list[Buffer] = [_shorter(compress(plane), plane) for plane in _planes(words)]
    lengths = np.array([len(plane) for plane in planes], _LENGTH)
    stored = b"".join([bytes([width]), lengths.tobytes(), *planes, tail])
    return (PLANES, stored) if len(stored) < len(whole) else (RAW, page)


def decode(codec: str, stored: Buffer, page: Buffer) -> None:
    """Write what ``encode`` made ``stored`` of into ``page``, which has its length.

    Raises ValueError where that can't be; then ``page`` may be anything. Contents that could be are not checked:
    that is what checksums are for.
    """
    whole, into = memoryview(stored).cast("B"), memoryview(page).cast("B")
    if codec == PLANES:
        _decode_planes(whole, into)
    elif codec != RAW:
        raise ValueError(f"a page is stored by the codec {codec!r}, which is not known here: is it of a later version?")
    elif len(whole) != len(into):
        raise ValueError(f"a page of {len(into)} bytes is stored raw in {len(whole)}")
    else:
        into[:] = whole


def _decode_planes(stored: memoryview, page: memoryview) -> None:
    width = stored[0] if stored else 0
    if width not in _WIDTHS or len(stored) < 1 + width * _LENGTH.itemsize:
        raise ValueError(f"{len(stored)} bytes are no page in planes: they don't begin like one")
    words, tail = _split(page, width)
    first = 1 + width * _LENGTH.itemsize
    lengths = [int(length) for length in np.frombuffer(stored[1:first], _LENGTH)]
    if first + sum(lengths) + len(tail) != len(stored) or max(lengths) > len(words):
        raise ValueError(f"{len(stored)} bytes are no page of {len(page)} in planes: their lengths don't add up")
    columns = words.view(np.uint8).reshape(len(words), width)
    for number, length in enumerate(lengths):
        plane = stored[first : first + length]
        columns[:, width - 1 - number] = np.frombuffer(_whole_plane(plane, len(words)), np.uint8)
        first += length
    for chunk in _chunks(words):
        words[chunk] = _rotated_left(words[chunk], 8 * width - 1)
    tail[:] = stored[first:]


def _split(page: memoryview, width: int) -> tuple[Words, memoryview]:
    """Views of the whole elements and of what is behind them."""
    end = len(page) - len(page) % width
    return np.frombuffer(page[:end], f"<u{width}"), page[end:]


def _planes(words: Words) -> list[memoryview]:
    planes = np.empty((words.itemsize, len(words)), np.uint8)
    for chunk in _chunks(words):
        rotated = _rotated_left(words[chunk], 1)
        for number, shift in enumerate(range(8 * words.itemsize - 8, -1, -8)):
            planes[number, chunk] = rotated >> shift
    return [plane.data for plane in planes]


def _shorter(one: Buffer, other: Buffer) -> Buffer:
    return one if len(one) < len(other) else other


def _chunks(words: Words) -> Iterator[slice]:
    size = _CHUNK // words.itemsize
    return (slice(first, first + size) for first in range(0, len(words), size))


def _rotated_left(words: Words, bits: int) -> Words:
    rotated: Words = (words << bits) | (words >> (8 * words.itemsize - bits))
    return rotated


def _compressor() -> Callable[[Buffer], bytes]:
    """One for a thread."""
    import zstandard  # here: `import ciuic_dist` does without it

    parameters = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST,
        window_log=_WINDOW_LOG,
        hash_log=_HASH_LOG,
        min_match=zstandard.MINMATCH_MAX,
        write_content_size=True,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress


def _whole_plane(stored: memoryview, length: int) -> Buffer:
    """Of ``length`` bytes. Raises ValueError."""
    import zstandard

    if len(stored) == length:
        return stored
    try:
        if zstandard.frame_content_size(stored) != length:  # else it would be allocated, whatever it is
            raise ValueError(f"{len(stored)} bytes are no plane of {length}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
        return decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"{len(stored)} bytes are no plane of {length}: {error}") from error
