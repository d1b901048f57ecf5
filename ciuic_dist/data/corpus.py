"""The training and the held-out part of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ciuic_dist.data import sources, tokenize
from ciuic_dist.data.batches import Batches
from ciuic_dist.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ciuic_dist.config import DataConfig


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sequences to train on, others to validate with, and the number of token ids."""

    train: Batches
    validation: Batches
    vocab_size: int


def load(config: DataConfig, *, seed: int) -> Corpus:
    """Read, tokenize and split the text of ``config``.

    ``seed`` orders the training sequences; the order of the held-out ones never changes, so that the
    first n of them are a fair and constant sample. Raises DataError where the data can't be used.
    """
    pieces = sources.read(config.path, config.text_field)
    tokenizer = tokenize.named(config.tokenizer)
    tokens, ends = tokenize.pack(pieces, tokenizer)
    source = sources.describe(config.path)
    if not len(tokens):
        raise DataError(f"{source} holds no text: give data.path a file or folder with some")
    cut = held_out_start(ends, config.validation_fraction)
    for part, name in ((tokens[:cut], "training"), (tokens[cut:], "validation")):
        _check_length(part, name, source, config.sequence_length)
    return Corpus(
        train=Batches(tokens[:cut], config.sequence_length, seed),
        validation=Batches(tokens[cut:], config.sequence_length, seed=0),
        vocab_size=tokenizer.vocab_size,
    )


def held_out_start(ends: Sequence[int], fraction: float) -> int:
    """Position of the first held-out token, given the position after each document.

    The last documents with ``fraction`` of all tokens are held out. Only where whole documents would
    take more than twice that (one large file, say) is the last of them cut.
    """
    total = ends[-1]
    cut = total - round(total * fraction)
    start = max((end for end in ends if end <= cut), default=0)
    return start if start and total - start <= 2 * fraction * total else cut


def _check_length(part: Tensor, name: str, source: str, sequence_length: int) -> None:
    if len(part) < sequence_length:
        raise DataError(
            f"{source}: the {name} part has {len(part)} tokens, fewer than one sequence of {sequence_length}; "
            "give more text, a smaller data.sequence_length, or another data.validation_fraction"
        )
