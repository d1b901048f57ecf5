"""Tensors in safetensors files, read by ranges of elements and written one by one.

Not with the format's own library: it maps a file whole, privately and writable, which counts against limits on a
process's data, cuts tensors by rows only, and writes a file from memory that has all of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ciuic_dist.config import ConfigError

CHUNK: Final = 4 << 20
"""Bytes that are read at once."""

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH: Final = 8  # bytes, in which the length of the header is written
_LARGEST_HEADER: Final = 100 << 20  # as the format's own library has it


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor that lies in ``file`` from byte ``offset`` on, row after row."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, start: int, stop: int) -> Iterator[Tensor]:
        """Elements ``start`` to ``stop`` in order, 1-D, at most ``CHUNK`` bytes at a time."""
        size = self.dtype.itemsize
        step = CHUNK // size
        for low in range(start, stop, step):
            chunk = bytearray((min(low + step, stop) - low) * size)
            with self.file.open("rb") as file:
                file.seek(self.offset + low * size)
                if file.readinto(chunk) != len(chunk):
                    raise ConfigError(f"{self.file} has become shorter since it was opened: fetch it again")
            yield torch.frombuffer(chunk, dtype=self.dtype)


def tensors_of(file: Path) -> dict[str, FileTensor]:
    """The tensors of a safetensors file by name; nothing but its header is read.

    Raises ConfigError where it is no such file, is cut short, or has a dtype that models aren't trained in.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH), "little")
            header = json.loads(opened.read(min(length, _LARGEST_HEADER)))
        header.pop("__metadata__", None)
        return {name: _tensor(file, _LENGTH + length, name, entry) for name, entry in header.items()}
    except (OSError, AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file} can't be read as a safetensors file: {error}") from error


def _tensor(file: Path, begin: int, name: str, entry: dict[str, Any]) -> FileTensor:
    shape, (start, stop), kind = entry["shape"], entry["data_offsets"], entry["dtype"]
    if kind not in DTYPES:
        raise ConfigError(f"{name} in {file} is of dtype {kind}: training needs one of {', '.join(DTYPES)}")
    found = FileTensor(file, begin + start, tuple(shape), DTYPES[kind])
    if stop - start != prod(found.shape) * found.dtype.itemsize or begin + stop > file.stat().st_size:
        raise ConfigError(f"{file} is cut short, or its header is wrong: {name} isn't there whole; fetch it again")
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """What a tensor is in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(file: Path, layouts: Mapping[str, Layout], values: Iterable[Tensor]) -> None:
    """Write a safetensors file and make it durable; ``values`` come in the order of ``layouts``, one at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    at = 0
    for name, layout in layouts.items():
        header[name] = {
            "dtype": kinds[layout.dtype],
            "shape": layout.shape,
            "data_offsets": [at, at + layout.nbytes],
        }
        at += layout.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)  # so that what follows is aligned
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(_LENGTH, "little") + text)
        for layout, value in zip(layouts.values(), values, strict=True):
            assert (tuple(value.shape), value.dtype) == (layout.shape, layout.dtype)
            opened.write(value.contiguous().view(-1).view(torch.uint8).numpy().data)
        opened.flush()
        os.fsync(opened.fileno())
