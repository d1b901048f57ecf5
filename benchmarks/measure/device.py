"""The device that a rank computes on."""

from __future__ import annotations

import torch

from ciuic_dist.comm.groups import device


def settle() -> None:
    """Return when the device has done all that it was asked for."""
    if device().type != "cpu":
        torch.accelerator.synchronize(device())


def begin_peak() -> None:
    """The allocator's peaks count from now on."""
    if device().type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device())


def allocated() -> int:
    """Most bytes of tensors since then; 0 on the CPU, whose allocator doesn't tell."""
    return 0 if device().type == "cpu" else torch.accelerator.max_memory_allocated(device())


def reserved() -> int:
    """The same of what the allocator has taken from the device."""
    return 0 if device().type == "cpu" else torch.accelerator.max_memory_reserved(device())
