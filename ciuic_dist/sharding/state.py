"""A sharded model's parameters, whole again."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ciuic_dist.comm.collectives import start_gather
from ciuic_dist.comm.groups import rank, world_size
from ciuic_dist.comm.together import together
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.values import read_shard


@torch.no_grad()
def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """The model's state dict on rank 0: CPU tensors under the original names, in the original shapes and dtypes.

    Every rank calls it; the others get an empty dict. One unit at a time is whole on each rank. Raises RuntimeError
    where an update has changed only a part of the model.
    """
    sharded = sharded_of(model)
    with together():
        sharded.refuse_while_updating()
    values: dict[int, Tensor] = {}
    with sharded.mesh.sharding() as group:
        for flat in sharded.flats:
            whole = _gathered(flat, group)
            if rank() == 0:
                for index, parameter in enumerate(flat.parameters):
                    values[id(parameter)] = flat.view(index, whole).to("cpu", copy=True)
    if rank() != 0:
        return {}
    entries = model.state_dict(keep_vars=True)
    return {name: values[id(v)] if id(v) in values else _detached(v) for name, v in entries.items()}


def _gathered(flat: Flat, group: dist.ProcessGroup | None) -> Tensor:
    shard = read_shard(flat)
    if flat.layout.world == 1 or world_size() == 1:
        return shard
    whole = torch.empty(flat.layout.numel, dtype=flat.master_dtype, device=flat.device)
    start_gather(whole, shard, f"the state of {flat.name}", group).land()
    return whole


def _detached(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
