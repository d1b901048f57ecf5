"""Pieces of parameters as torch.distributed.checkpoint sees them: boxes of a tensor of the parameter's shape.

A shard is a flat range; only here is it cut into boxes, so that any other world, and any other tool that
reads the format, finds whole tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ciuic_dist.sharding.layout import Box, boxes


class BoxedPiece:
    """``values`` (1-D) are the elements from ``start`` on of a tensor of ``shape``."""

    def __init__(self, shape: tuple[int, ...], start: int, values: Tensor) -> None:
        self.values = values
        self._shape = torch.Size(shape)
        self._boxes = {torch.Size(b.offsets): b for b in boxes(shape, start, start + values.numel())}

    def moved_to(self, values: Tensor) -> BoxedPiece:
        """The same elements, which lie in ``values`` now."""
        moved = copy.copy(self)
        moved.values = values
        return moved

    def size(self) -> torch.Size:
        """Shape of the whole tensor."""
        return self._shape

    def at(self, offsets: torch.Size | None) -> Tensor:
        """The box that begins at ``offsets``, a view."""
        box = self._boxes[torch.Size(offsets or ())]
        return self.values[box.start : box.start + prod(box.sizes)].view(box.sizes)

    def boxes(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Each box's offsets and values, views, in order."""
        for box in self._boxes.values():
            yield box.offsets, self.at(torch.Size(box.offsets))

    def chunks(self) -> list[ChunkStorageMetadata]:
        """Where the boxes lie in the whole tensor."""
        return [_chunk(box) for box in self._boxes.values()]


def _chunk(box: Box) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(box.offsets), sizes=torch.Size(box.sizes))


class LoadPlanner(DefaultLoadPlanner):
    """Reads into boxed pieces besides whole tensors and objects."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the entries as they are; the default would walk into them."""
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        """What to read for this rank."""
        pieces = {name: value for name, value in self.state_dict.items() if isinstance(value, BoxedPiece)}
        others = {name: value for name, value in self.state_dict.items() if name not in pieces}
        assert self.metadata is not None
        plan = create_default_local_load_plan(others, self.metadata)
        for name, piece in pieces.items():
            saved = self.metadata.state_dict_metadata[name]
            assert isinstance(saved, TensorStorageMetadata)
            plan.items.extend(create_read_items_for_chunk_list(name, saved, piece.chunks()))
        return plan

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The box or tensor to fill."""
        found = self.state_dict[index.fqn]
        return found.at(index.offset) if isinstance(found, BoxedPiece) else super().lookup_tensor(index)
