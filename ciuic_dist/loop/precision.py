"""Says so where a processor without instructions for bf16 is asked to compute with it."""

from __future__ import annotations

import sys
from typing import Final

import torch

from ciuic_dist.comm.groups import device, rank
from ciuic_dist.config import TrainConfig
from ciuic_dist.estimate.probe import matrix_rate

_SIDE: Final = 256
"""Of the matrices that are multiplied: even where it goes slowly they take hundredths of a second."""
_SLOWER: Final = 4.0
"""How many times is worth a word: with such instructions bf16 is as quick as fp32 or quicker, without by far not."""


def warn_of_slow_bf16(train: TrainConfig) -> None:
    """Rank 0 warns where the CPU is far quicker in fp32. Collective: it is measured, as not every run has a plan."""
    if train.precision != "bf16" or device().type != "cpu":
        return
    quick, slow = (matrix_rate(dtype, device(), _SIDE) for dtype in (torch.float32, torch.bfloat16))
    if quick >= _SLOWER * slow and rank() == 0:
        sys.stderr.write(
            f"warning: this processor multiplies matrices of bf16 {quick / slow:.0f} times slower than those of fp32: "
            f"train.precision=fp32 is quicker where there is memory for it\n"
        )
