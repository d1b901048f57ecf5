"""Checkpoints go to and from torch.distributed.checkpoint: its own format, and ours through its reader and writer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import ciuic_dist as cd
from ciuic_dist.checkpoint.storage import PageReader, PageWriter
from ciuic_dist.comm.groups import rank, world_size
from ciuic_dist.optim.paged import StateValues
from tests.dist.launch import launch
from tests.dist.stored import everything_in, quiet, write_plain

WRITTEN_BEFORE = Path(__file__).with_name("plain_checkpoint")
"""By version 0.1.0 through FileSystemWriter: what ``trained`` gives, from two ranks."""


def trained(seed: int = 0, steps: int = 1) -> tuple[nn.Module, Any]:
    """A sharded model and its optimizer after some steps."""
    torch.manual_seed(seed)
    model = cd.shard(nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16)))
    optimizer = cd.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(torch.arange(32.0).sin().view(4, 8)).abs().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state(model: nn.Module, optimizer: Any) -> list[Any]:
    """Copies of what there is on this rank, and of the whole model on rank 0."""
    found = [{key: _copied(value) for key, value in values.items()} for _, _, values in optimizer.piece_states()]
    return [cd.full_state_dict(model), found, optimizer.settings()]


def _copied(value: Any) -> Any:
    return value.read() if isinstance(value, StateValues) else value.clone()


def load_from(path: Path) -> tuple[Any, Any, Any]:
    model, optimizer = trained(seed=1, steps=0)
    extra = cd.load(path, model=model, optimizer=optimizer)
    return extra, state(model, optimizer), state(*trained())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_checkpoints_of_version_0_1_load(world: int) -> None:
    for extra, found, expected in launch(load_from, WRITTEN_BEFORE, world=world):
        assert extra == {"step": 1}
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def save_ours(path: Path) -> None:
    model, optimizer = trained()
    cd.save(path, model=model, optimizer=optimizer, step=1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_what_torch_copies_into_its_own_format_loads_the_same(world: int, tmp_path: Path) -> None:
    launch(save_ours, tmp_path / "ours", world=world)
    write_plain(tmp_path / "torchs", everything_in(tmp_path / "ours"))
    for extra, found, expected in launch(load_from, tmp_path / "torchs", world=world):
        assert extra == {"step": 1}
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def plain_state(seed: int) -> dict[str, Any]:
    """A model, its optimizer and more, as a user of torch.distributed.checkpoint has them; one tensor in shards."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    whole = torch.randn(7, 3, 2)
    if world_size() > 1:
        whole = distribute_tensor(whole, init_device_mesh("cpu", (world_size(),)), [Shard(0)])
    dtypes = (torch.bfloat16, torch.complex64, torch.bool, torch.int8, torch.float8_e4m3fn)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "sharded": whole,
        "dtypes": {str(dtype): torch.randn(3, 4).t().to(dtype) for dtype in dtypes},
        "shapes": [torch.zeros(0, 3), torch.tensor(seed)],
        "seed": seed,
    }


def whole(value: Any) -> Any:
    """Without shards."""
    if isinstance(value, dict):
        return {key: whole(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [whole(v) for v in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def through_torch(path: Path) -> Any:
    saved = plain_state(seed=5)
    there = plain_state(seed=6)
    with quiet():
        dcp.save(saved, storage_writer=PageWriter(path), no_dist=world_size() == 1)
        dcp.load(there, storage_reader=PageReader(path), no_dist=world_size() == 1)
    assert_same(whole(there), whole(saved))
    return whole(saved)["model"]


@pytest.mark.parametrize("world", [1, 3])
def test_any_state_goes_through_torchs_calls(world: int, tmp_path: Path) -> None:
    model = launch(through_torch, tmp_path / "c", world=world)[0]
    assert_same(everything_in(tmp_path / "c")["model"], model)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c"]


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit; float8 has no comparison of its own."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.contiguous().view(-1).view(torch.uint8).equal(expected.contiguous().view(-1).view(torch.uint8))
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def shared_work(path: Path) -> list[int]:
    """Bytes of pages that each rank writes of a model that all have whole."""
    model = cd.shard(nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8))), stage=0)
    cd.save(path, model=model)
    return [file.stat().st_size for file in sorted(path.glob("*.pages"))]


def test_ranks_share_the_work_of_writing_what_all_have(tmp_path: Path) -> None:
    sizes = launch(shared_work, tmp_path / "c")[0]
    assert sum(sizes) < 8 * 64 * 64 * 4 * 1.1
    assert max(sizes) < sum(sizes) * 0.6


def fail_in_the_middle(path: Path) -> tuple[list[str], bool]:
    """The errors of a load, of a forward and of a save after it, and whether a load makes good."""
    model, optimizer = trained()
    cd.save(path, model=model, optimizer=optimizer)
    damaged = path.with_name("damaged")
    if rank() == 0:
        shutil.copytree(path, damaged)
        pages = damaged / f"rank-{world_size() - 1:05d}.pages"
        content = bytearray(pages.read_bytes())
        content[0] ^= 1
        pages.write_bytes(content)
    cd.save(path.with_name("another"), model=model)
    expected = state(model, optimizer)
    errors = []
    other, optimizer = trained(seed=3)
    for call in (
        lambda: cd.load(damaged, model=other, optimizer=optimizer),
        lambda: other(torch.ones(2, 8)),
        lambda: cd.save(path.with_name("bad"), model=other),
    ):
        try:
            call()
            errors.append("no error")
        except Exception as error:  # noqa: BLE001 (it is what is returned)
            errors.append(f"{type(error).__name__}: {error}")
    cd.load(path, model=other, optimizer=optimizer)
    torch.testing.assert_close(state(other, optimizer), expected, rtol=0, atol=0)
    return errors, bool(other(torch.ones(2, 8)).isfinite().all())


@pytest.mark.parametrize("world", [1, 2])
def test_a_load_that_meets_damage_in_the_middle_leaves_a_model_that_refuses(world: int, tmp_path: Path) -> None:
    for (loading, forward, saving), good in launch(fail_in_the_middle, tmp_path / "c", world=world):
        assert loading.startswith(f"CorruptCheckpoint: {tmp_path}/damaged/rank-0000{world - 1}.pages: the page of ")
        assert forward == saving
        assert forward.startswith("RuntimeError: this model is of no use: loading ")
        assert good
    assert not (tmp_path / "bad").exists()
