"""Values of a model that ``shard`` takes: rank 0's count, also where a part of the model is on meta."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import control_group, gather_objects, rank
from ciuic_dist.sharding.exchange.collective import CollectiveExchange
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import Ranks, fresh, launch
from tests.dist.models import Stack


def values(model: nn.Module) -> dict[str, Tensor]:
    """What this rank computes with (full forms are in shared memory), buffers too."""
    found = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    sharded_of(model).exchange.close()
    return {name: value.detach().cpu() for name, value in found.items()}


class Noisy(nn.Linear):
    """A linear with random numbers in a buffer."""

    noise: Tensor

    def __init__(self) -> None:
        super().__init__(8, 12)
        self.register_buffer("noise", torch.empty(5))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "noise"):
            self.noise.normal_()


def reset_with_own_seeds() -> tuple[dict[str, Tensor], bool]:
    with torch.device("meta"):
        model = nn.Sequential(Noisy(), Stack())
    torch.manual_seed(5 + rank())
    before = torch.get_rng_state()
    sharded = cd.shard(model)
    return values(sharded), torch.equal(before, torch.get_rng_state())


def test_a_model_on_meta_gets_the_values_of_rank_0s_seed() -> None:
    (first, _), (second, kept) = launch(reset_with_own_seeds)
    torch.manual_seed(5)
    expected = nn.Sequential(Noisy(), Stack())
    torch.manual_seed(5)
    for module in expected.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    torch.testing.assert_close(first, dict(expected.state_dict()), rtol=0.0, atol=0.0)
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0)
    assert kept


def shard_partly_on_meta() -> dict[str, Tensor]:
    torch.manual_seed(rank())
    model = Stack()
    model.first.bias = nn.Parameter(torch.empty(12, device="meta"))
    model.last.to("meta")
    return values(cd.shard(model))


def test_a_model_partly_on_meta_keeps_its_real_values() -> None:
    first, second = launch(shard_partly_on_meta)
    torch.manual_seed(0)
    expected = Stack().state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if not name.startswith("last.") and name != "first.bias":
            assert torch.equal(value, expected[name]), name


def shard_meta_on_one_rank() -> str:
    with torch.device("cpu" if rank() == 0 else "meta"):
        model = Stack()
    with pytest.raises(RuntimeError, match="on meta") as raised:
        cd.shard(model)
    return str(raised.value)


def test_a_model_on_meta_on_one_rank_only_is_refused() -> None:
    first, second = launch(shard_meta_on_one_rank)
    assert first == second


def shard_odd_dtypes() -> dict[str, Tensor]:
    model = Stack()
    for dtype in (torch.int16, torch.float8_e4m3fn):
        value = (torch.arange(6) + rank()).view(2, 3).to(dtype)
        name = str(dtype).split(".")[1]
        model.register_buffer(f"{name}_buffer", value.clone().t())
        model.blocks[0].register_parameter(name, nn.Parameter(value, requires_grad=False))
    return {name: value.float() for name, value in values(cd.shard(model)).items()}


def test_dtypes_that_gloo_does_not_know() -> None:
    for found in launch(shard_odd_dtypes):
        for name in ("int16", "float8_e4m3fn"):
            expected = torch.arange(6.0).view(2, 3)
            assert torch.equal(found[f"blocks.0.{name}"], expected)
            assert torch.equal(found[f"{name}_buffer"], expected.t())


def read_and_load() -> None:
    model = cd.shard(Stack())
    with pytest.raises(RuntimeError, match=r"cd\.full_state_dict"):
        model.state_dict()
    with pytest.raises(RuntimeError, match=r"cd\.load"):
        model.load_state_dict({})
    assert cd.full_state_dict(model).keys() == (Stack().state_dict().keys() if rank() == 0 else set())


def test_state_dicts_of_released_parameters_are_refused() -> None:
    launch(read_and_load, shared=False)


def shard_without_temporary_folder_on_rank_1() -> Any:
    if rank() == 1:
        tempfile.tempdir = "/nowhere"
    try:
        with pytest.warns(UserWarning, match="will send instead of sharing memory"):
            model = cd.shard(Stack())
    finally:
        tempfile.tempdir = None
    return type(sharded_of(model).exchange)


def test_a_rank_that_can_make_no_socket_does_not_hang_the_others() -> None:
    found = launch(shard_without_temporary_folder_on_rank_1)
    assert found == [CollectiveExchange, CollectiveExchange]


class Empty(nn.Module):
    """Its only parameter has no elements."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + self.nothing.sum()


def train_nothing() -> dict[str, Any]:
    model = cd.shard(Empty())
    optimizer = cd.AdamW(model.parameters())
    model(torch.ones(2)).backward()
    optimizer.step()
    return cd.full_state_dict(model)


@pytest.mark.parametrize("shared", [True, False])
def test_a_unit_without_elements_is_one_like_others(shared: bool) -> None:
    first, _ = launch(train_nothing, shared=shared)
    assert first["nothing"].shape == (0, 3)


def mapped_and_open() -> tuple[int, int]:
    """How many maps of pools there are, and how many open files."""
    maps = Path("/proc/self/maps").read_text().count("ciuic-pool")
    return maps, len(list(Path("/proc/self/fd").iterdir()))


def drop_a_model() -> list[tuple[int, int]]:
    gc.collect()
    counts = [mapped_and_open()]
    model = cd.shard(Stack())
    model(torch.ones(2, 8)).sum().backward()
    counts.append(mapped_and_open())
    gather_objects(None)  # nobody still waits for a rank that hangs up
    del model
    gc.collect()
    return [*counts, mapped_and_open()]


def test_a_model_that_nobody_needs_gives_back_memory_and_sockets() -> None:
    ranks = fresh(2)
    ranks.run(drop_a_model)  # what torch opens at its first use stays
    for outcome in ranks.run(drop_a_model):
        assert outcome.error is None, outcome.error
        before, during, after = outcome.value
        assert during[0] > before[0]
        assert during[1] > before[1]
        assert after == before
    ranks.kill()


def gather_beside_a_group_without_cpus() -> tuple[list[int], bool]:
    address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    dist.init_process_group("cuda:gloo", address, rank=int(os.environ["RANK"]), world_size=2)
    return gather_objects(rank() * 10), control_group() is control_group()


def test_objects_are_gathered_beside_a_group_for_gpus_only() -> None:
    ranks = Ranks(2)
    outcomes = ranks.run(gather_beside_a_group_without_cpus)
    ranks.kill()
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(([0, 10], True), None)] * 2
