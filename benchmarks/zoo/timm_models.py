"""Images by timm, which needs torchvision to be importable but uses none of its operators.

PyPI's torchvision for Linux is compiled for CUDA; beside a CPU build of torch its operators do not load, its import
fails, and with it that of transformers. So where no working torchvision is installed, both packages go to a folder of
their own, `<prefix>/zoo`, that only this module looks into:

    python -m pip install --no-deps --target "$(python -c 'import sys; print(sys.prefix)')/zoo" timm torchvision
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmarks.zoo.batches import image, integers
from benchmarks.zoo.entry import SEED, Batch, Entry

FOLDER = Path(sys.prefix) / "zoo"
CLASSES = 10
SIZE = 64  # pixels

# The operators whose fake kernels torchvision registers when imported, loaded or not.
MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

MODELS = (
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_efficientnet_gn",
    "test_efficientnet_ln",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_mambaout",
    "ghostnet_050",
    "mobilenetv3_small_050",
)


class Classifier(nn.Module):
    """A timm model and its loss, in a plain dict."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """FloatTensor[rows, 3, SIZE, SIZE], LongTensor[rows] -> {"loss": [], "logits": [rows, CLASSES]}."""
        logits = self.body(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def installed() -> bool:
    """Whether timm can be imported, from the environment or from FOLDER."""
    return importlib.util.find_spec("timm") is not None or (FOLDER / "timm").is_dir()


def make(name: str) -> nn.Module:
    """The timm model called `name` with random weights that depend on SEED only."""
    timm = load()
    torch.manual_seed(SEED)
    body: nn.Module = timm.create_model(name, num_classes=CLASSES, drop_rate=0.0)
    return Classifier(body).train()


def load() -> Any:
    """Import timm; ModuleNotFoundError where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        sys.path.append(str(FOLDER))
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for schema in MISSING:
            operators.define(schema)
    import timm

    return timm


def batch(generator: Generator, rows: int) -> Batch:
    """Images to classes."""
    return {"pixel_values": image(generator, rows, SIZE), "labels": integers(generator, CLASSES, rows)}


def entries() -> list[Entry]:
    """Every timm model."""
    return [Entry(name, "timm", partial(make, name), batch) for name in MODELS]
