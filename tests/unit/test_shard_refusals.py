"""What a sharded model refuses, and what ``shard`` does; one process alone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.models import Frozen, Stack


def check_attached(model: nn.Module) -> None:
    for flat in sharded_of(model).flats:
        flat.check_attached()


def test_a_converted_parameter_is_named() -> None:
    model = cd.shard(Stack())
    check_attached(model)
    model.blocks[1].double()  # type: ignore[index]
    with pytest.raises(RuntimeError, match=r"blocks\.1\..* was moved or converted after"):
        check_attached(model)


def test_an_unfrozen_parameter_is_named() -> None:
    model = cd.shard(Frozen())
    check_attached(model)
    model.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"blocks\..* was unfrozen after"):
        check_attached(model)


def test_a_budget_that_is_none_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"memory must be a cd\.Memory"):
        cd.shard(Stack(), memory={"device": "1GB"})  # type: ignore[arg-type]


@pytest.mark.parametrize("below", ["host", "nvme"])
def test_a_tier_below_no_budget_is_refused(below: str, tmp_path: Path) -> None:
    memory = cd.Memory(host="1GB") if below == "host" else cd.Memory(nvme=f"{tmp_path}:1GB")
    with pytest.raises(BudgetError, match=f"memory.{below} .*: give memory.device as well, or a plan"):
        cd.shard(Stack(), memory=memory)


@pytest.mark.parametrize("stage", [0, 3])
def test_parts_of_a_sharded_model_are_sharded_already(stage: int) -> None:
    first, second = Stack(), Stack()
    second.blocks[0] = first.blocks[0]
    second.last.weight = first.last.weight
    cd.shard(first, stage=stage)
    for other in (second, nn.Sequential(first), first.blocks[0]):
        with pytest.raises(ValueError, match="sharded already"):
            cd.shard(other, stage=stage)


def test_copies_and_pickles_are_refused() -> None:
    model = cd.shard(Stack())
    for part in (model, model.blocks[0], [model]):  # type: ignore[index]
        with pytest.raises(RuntimeError, match=r"copy it before cd\.shard"):
            copy.deepcopy(part)
        with pytest.raises(RuntimeError, match=r"cd\.save"):
            pickle.dumps(part)


def test_loading_a_state_dict_is_refused() -> None:
    model = cd.shard(Stack())
    with pytest.raises(RuntimeError, match=r"load before cd\.shard"):
        model.load_state_dict(Stack().state_dict())
    assert model.state_dict().keys() == cd.full_state_dict(model).keys()  # memory is there all the time


def test_a_model_that_nobody_needs_goes() -> None:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    trace, inner_trace = weakref.ref(model), weakref.ref(sharded_of(model))
    del model, optimizer
    gc.collect()
    assert trace() is None
    assert inner_trace() is None


def test_batch_norms_keep_their_dtype_in_bf16() -> None:
    block = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    model = cd.shard(nn.Sequential(block, copy.deepcopy(block)), mixed_precision="bf16")
    output = model(torch.randn(2, 4, 8))
    output.float().square().sum().backward()
    assert output.dtype == model[0][0].weight.dtype == torch.bfloat16  # type: ignore[index]
    assert model[0][1].weight.dtype == model[0][1].running_mean.dtype == torch.float32  # type: ignore[index]
    assert all(any(flat.touched) for flat in sharded_of(model).flats)
    model.eval()
    assert model(torch.randn(2, 4, 8)).isfinite().all()
