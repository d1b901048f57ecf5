"""Whether a run's checkpoints are worth compressing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

from ciuic_dist.checkpoint.pages import PAGE_BYTES
from ciuic_dist.comm import groups
from ciuic_dist.compress.worth import outruns
from ciuic_dist.estimate.codec import measure_codec
from ciuic_dist.estimate.drive import measure_drive

_WRITTEN: Final = 64 << 20
"""Bytes that each rank writes and reads to measure the drive."""


def pays(folder: Path) -> bool:
    """Whether the cores that don't train compress quicker than ``folder``'s drive writes and reads. Collective."""
    spare = _spare_cores()
    if not all(groups.gather_objects(spare > 0)):
        return False
    drive = measure_drive(folder, PAGE_BYTES, _WRITTEN)
    return all(groups.gather_objects(outruns(measure_codec(PAGE_BYTES), spare, write=drive.write, read=drive.read)))


def _spare_cores() -> int:
    """Of this rank: its share of the host's, but for those that compute and the one that drives them."""
    here = groups.gather_objects(groups.host_identity()).count(groups.host_identity())
    training = torch.get_num_threads() if groups.device().type == "cpu" else 1
    return len(os.sched_getaffinity(0)) // here - training
