"""Text to token ids, packed into one flat array."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch

from ciuic_dist.data.errors import DataError
from ciuic_dist.data.formats import DOCUMENT_END
from ciuic_dist.hub import Repository

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

_GROUP: Final = 4 << 20  # bytes of text handed to a tokenizer at once


class Tokenizer(Protocol):
    """Makes token ids, given as the raw memory of an array of ``dtype``; ``end`` is the one that ends a document."""

    dtype: torch.dtype
    vocab_size: int
    end: int | None

    def encode(self, pieces: Sequence[bytes]) -> list[bytes]:
        """Ids of each UTF-8 piece; for ``DOCUMENT_END`` those that part two documents."""
        ...

    def ids(self, text: str) -> list[int]:
        """The ids of ``text``, which ends no document."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; what is no text in them is replaced."""
        ...

    def save(self, folder: Path) -> None:
        """Write what transformers' AutoTokenizer loads, where there is such a thing."""
        ...


class Bytes:
    """Each byte is a token; byte 0 ends a document."""

    dtype = torch.uint8
    vocab_size = 256
    end: int | None = 0

    def encode(self, pieces: Sequence[bytes]) -> list[bytes]:
        return [piece or b"\0" for piece in pieces]

    def ids(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Nothing: transformers has no tokenizer whose ids are the bytes."""


class HuggingFace:
    """A tokenizer of transformers by hub id or local folder; its EOS token ends a document.

    Raises DataError where there is no such tokenizer. Code from the hub is never run.
    """

    dtype = torch.int32

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            repository = Repository(name)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                repository.find(file)  # to transformers, one that doesn't come may be one that there isn't
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=repository.revision)
            ids = self._tokenizer.get_vocab().values()
        except Exception as error:  # the Rust half raises no narrower one for a broken file
            reason = str(error).strip().split("\n", 1)[0]
            raise DataError(
                f"no tokenizer {name!r}: {reason}; data.tokenizer is 'bytes', a Hugging Face hub id, "
                "or a folder that save_pretrained of a tokenizer wrote"
            ) from error
        if not ids:
            raise DataError(f"the tokenizer {name!r} has an empty vocabulary; give a complete one in data.tokenizer")
        self.vocab_size: int = max(ids) + 1  # ids may have gaps, so not their number
        self.end: int | None = self._tokenizer.eos_token_id
        self._end = b"" if self.end is None else np.int32(self.end).tobytes()

    def encode(self, pieces: Sequence[bytes]) -> list[bytes]:
        encoded = self._tokenizer(
            [piece.decode() for piece in pieces],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            self._end if piece == DOCUMENT_END else np.asarray(ids, dtype=np.int32).tobytes()
            for piece, ids in zip(pieces, encoded["input_ids"], strict=True)
        ]

    def ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


def named(name: str) -> Tokenizer:
    """The tokenizer that ``data.tokenizer`` asks for."""
    return Bytes() if name == "bytes" else HuggingFace(name)


def pack(pieces: Iterable[bytes], tokenizer: Tokenizer) -> tuple[Tensor, Sequence[int]]:
    """All tokens end to end, 1-D of ``tokenizer.dtype``, and the position after each document."""
    buffer, ends = bytearray(), array("q")
    for group in _groups(pieces):
        for piece, ids in zip(group, tokenizer.encode(group), strict=True):
            buffer += ids
            if piece == DOCUMENT_END:
                ends.append(len(buffer) // tokenizer.dtype.itemsize)
    if not buffer:
        return torch.empty(0, dtype=tokenizer.dtype), ends
    return torch.frombuffer(buffer, dtype=tokenizer.dtype), ends


def _groups(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
