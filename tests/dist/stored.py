"""Checkpoints as torch's own tools read and write them, in one process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from ciuic_dist.checkpoint.storage import reader_of


def everything_in(path: Path) -> dict[str, Any]:
    """Every entry, tensors whole, as ``dcp_to_torch_save`` would store them."""
    entries: dict[str, Any] = {}
    with quiet():
        _load_state_dict(entries, storage_reader=reader_of(path), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return entries


def write_plain(path: Path, entries: dict[str, Any]) -> None:
    """A checkpoint in torch's own format."""
    with quiet():
        planner = DefaultSavePlanner(flatten_state_dict=False)
        dcp.save(entries, storage_writer=FileSystemWriter(path), planner=planner, no_dist=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch.distributed.checkpoint warns of, about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
