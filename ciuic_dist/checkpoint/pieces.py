"""Pieces of parameters as torch.distributed.checkpoint sees them: boxes of a tensor of the parameter's shape.

A shard is a flat range; only here is it cut into boxes, so that any other world, and any other tool that
reads the format, finds whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ciuic_dist.sharding.layout import Box, boxes


class BoxedPiece:
    """``numel`` elements from ``start`` on of a tensor of ``shape``; ``read`` gives them when they are needed, 1-D."""

    def __init__(
        self, shape: tuple[int, ...], start: int, numel: int, dtype: torch.dtype, read: Callable[[], Tensor]
    ) -> None:
        self.start = start
        self.numel = numel
        self.dtype = dtype
        self.read = read
        self._shape = torch.Size(shape)
        self._boxes = {torch.Size(b.offsets): b for b in boxes(shape, start, start + numel)}

    def size(self) -> torch.Size:
        """Shape of the whole tensor; the planner compares it with what was saved."""
        return self._shape

    def at(self, offsets: torch.Size | None) -> Tensor:
        """The box that begins at ``offsets``, a view."""
        box = self._boxes[torch.Size(offsets or ())]
        count = torch.Size(box.sizes).numel()
        return self.read()[box.start : box.start + count].view(box.sizes)

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(box.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_chunk(box),
                    properties=TensorProperties(dtype=self.dtype),
                    size=self._shape,
                ),
            )
            for box in self._boxes.values()
        ]

    def chunks(self) -> list[ChunkStorageMetadata]:
        """Where the boxes lie in the whole tensor."""
        return [_chunk(box) for box in self._boxes.values()]


def room_for(shape: tuple[int, ...], start: int, numel: int, dtype: torch.dtype, device: torch.device) -> BoxedPiece:
    """A piece with memory of its own, not yet filled."""
    values = torch.empty(numel, dtype=dtype, device=device)
    return BoxedPiece(shape, start, numel, dtype, lambda: values)


def _chunk(box: Box) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(box.offsets), sizes=torch.Size(box.sizes))


class SavePlanner(DefaultSavePlanner):
    """Writes boxed pieces besides whole tensors and objects; of what several ranks hold, the lowest rank's."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The box, tensor or object to write."""
        found = self.state_dict[index.fqn]
        return found.at(index.offset) if isinstance(found, BoxedPiece) else super().lookup_object(index)


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
        """What to read for this rank. Raises ValueError where a whole tensor's shape is another."""
        pieces = {name: value for name, value in self.state_dict.items() if isinstance(value, BoxedPiece)}
        others = {name: value for name, value in self.state_dict.items() if name not in pieces}
        assert self.metadata is not None
        plan = create_default_local_load_plan(others, self.metadata)
        for name, piece in pieces.items():
            saved = self.metadata.state_dict_metadata[name]
            if not isinstance(saved, TensorStorageMetadata) or saved.size != piece.size():
                was = list(saved.size) if isinstance(saved, TensorStorageMetadata) else "no tensor"
                raise ValueError(f"{name} was saved as {was} and is {list(piece.size())} here")
            plan.items.extend(create_read_items_for_chunk_list(name, saved, piece.chunks()))
        return plan

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The box or tensor to fill."""
        found = self.state_dict[index.fqn]
        return found.at(index.offset) if isinstance(found, BoxedPiece) else super().lookup_tensor(index)
