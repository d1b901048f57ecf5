"""Random inputs: each function draws `rows` samples from a generator, as keyword arguments of a forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from benchmarks.zoo.entry import TINY, Batch

TOKENS = 16
SAMPLES = 1600  # of audio, 0.1 s
CLASSES = 2


def integers(generator: Generator, high: int, *shape: int, low: int = 0) -> Tensor:
    """LongTensor[shape] of uniform integers in [low, high)."""
    return torch.randint(low, high, shape, generator=generator)


def floats(generator: Generator, *shape: int) -> Tensor:
    """Normal FloatTensor[shape]."""
    return torch.randn(shape, generator=generator)


def tokens(generator: Generator, rows: int, length: int = TOKENS) -> Tensor:
    """LongTensor[rows, length]; no padding or other special tokens."""
    return integers(generator, TINY["vocab_size"], rows, length, low=5)


def language(generator: Generator, rows: int) -> Batch:
    """Next-token prediction: the model shifts the labels."""
    ids = tokens(generator, rows)
    return {"input_ids": ids, "labels": ids.clone()}


def masked(generator: Generator, rows: int) -> Batch:
    """Tokens to tokens, with a part of the labels ignored."""
    labels = tokens(generator, rows)
    labels[:, ::3] = -100
    return {"input_ids": tokens(generator, rows), "labels": labels}


def labelled_text(generator: Generator, rows: int) -> Batch:
    """Text to a class."""
    return {"input_ids": tokens(generator, rows), "labels": integers(generator, CLASSES, rows)}


def text(generator: Generator, rows: int) -> Batch:
    """Text without labels."""
    return {"input_ids": tokens(generator, rows)}


def translation(generator: Generator, rows: int) -> Batch:
    """A source text and a shorter target."""
    return {"input_ids": tokens(generator, rows), "labels": tokens(generator, rows, TOKENS // 2)}


def image(generator: Generator, rows: int, size: int = TINY["image_size"]) -> Tensor:
    """FloatTensor[rows, 3, size, size]."""
    return floats(generator, rows, 3, size, size)


def labelled_image(generator: Generator, rows: int) -> Batch:
    """An image to a class."""
    return {"pixel_values": image(generator, rows), "labels": integers(generator, CLASSES, rows)}


def images(size: int) -> Callable[[Generator, int], Batch]:
    """Labelled images of another size."""

    def batch(generator: Generator, rows: int) -> Batch:
        return {"pixel_values": image(generator, rows, size), "labels": integers(generator, CLASSES, rows)}

    return batch


def transcript(generator: Generator, rows: int) -> Batch:
    """Raw audio to a few tokens (CTC)."""
    return {"input_values": floats(generator, rows, SAMPLES), "labels": integers(generator, 30, rows, 3, low=5)}


def pairs(generator: Generator, rows: int) -> Batch:
    """Texts and images for a contrastive loss."""
    return {"input_ids": tokens(generator, rows), "pixel_values": image(generator, rows)}
