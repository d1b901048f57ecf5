"""A drive that fills up is one error on all ranks that says what to do; what was saved stays, and training goes on."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.checkpoint.errors import NoRoom
from ciuic_dist.checkpoint.folder import discard
from ciuic_dist.comm.groups import meet
from ciuic_dist.comm.together import on_rank_zero
from ciuic_dist.optim.paged import PagedOptimizer
from tests.dist.launch import launch
from tests.dist.models import Stack
from tests.dist.test_checkpoint_worlds import train as train_steps
from tests.dist.train_jobs import TINY, Job, checkpoints, losses, train
from tests.dist.training import Sample

PLENTY = 1 << 26
BLOCK = 4096
WHAT_TO_DO = "make room in {} and save or start again, or write elsewhere; the checkpoints that are there are whole"


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Path]:
    """A drive of its own with plenty of room."""
    folder = tmp_path / "drive"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no drive can be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(drive: Path, limit: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{limit}", drive], check=True)


def taken(drive: Path) -> tuple[int, int]:
    """Bytes, files."""
    found = os.statvfs(drive)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def made() -> tuple[nn.Module, PagedOptimizer]:
    torch.manual_seed(0)
    model = cd.shard(Stack())
    return model, cd.AdamW(model.parameters(), lr=1e-2)


def limits_of(drive: Path, save: Callable[[], object]) -> list[str]:
    """Every number of blocks, and of files, that is too small for one more checkpoint."""
    resize(drive, f"size={PLENTY},nr_inodes=1000")
    nbytes, files = on_rank_zero(partial(taken, drive))
    save()
    nbytes_then, files_then = on_rank_zero(partial(taken, drive))
    sizes = [f"size={size},nr_inodes=1000" for size in range(nbytes, nbytes_then, BLOCK)]
    return sizes + [f"size={PLENTY},nr_inodes={number}" for number in range(files, files_then)]


def crowd(drive: Path, options: dict[str, Any]) -> tuple[list[str], list[float], int]:
    """Fill the drive up by one more checkpoint in all ways there are, a step of training each; what each said."""
    model, optimizer = made()
    train_steps(model, optimizer, range(1))
    cd.save(drive / "1", model=model, optimizer=optimizer, step=1)
    limits = limits_of(drive, lambda: cd.save(drive / "2", model=model, optimizer=optimizer, step=2, **options).wait())
    on_rank_zero(partial(discard, drive / "2"))
    before = on_rank_zero(partial(taken, drive))
    said, found = [], []
    for number, limit in enumerate(limits, 1):
        on_rank_zero(partial(resize, drive, limit))
        saving = None
        try:
            saving = cd.save(drive / "2", model=model, optimizer=optimizer, step=2, **options)
        except NoRoom as error:
            said.append(str(error))
        found += train_steps(model, optimizer, range(number, number + 1))
        try:
            if saving is not None:
                saving.wait()
        except NoRoom as error:
            said.append(str(error))
        meet()
        assert [entry.name for entry in drive.iterdir()] == ["1"]
        assert taken(drive) == before
    open_files = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    assert not [file for file in open_files if file.startswith(str(drive))], "it keeps its room"
    on_rank_zero(partial(resize, drive, f"size={PLENTY},nr_inodes=1000"))
    cd.save(drive / "2", model=model, optimizer=optimizer, step=len(limits) + 1, **options).wait()
    return said, found, len(limits)


def train_again(drive: Path, name: str | None, last: int) -> list[float]:
    model, optimizer = made()
    first = cd.load(drive / name, model=model, optimizer=optimizer)["step"] if name else 0
    return train_steps(model, optimizer, range(first, last))


@pytest.mark.parametrize("options", [{}, {"wait": False}, {"wait": False, "compress": True}], ids=str)
def test_wherever_a_save_finds_no_room_training_goes_on(options: dict[str, Any], drive: Path) -> None:
    outcomes = launch(crowd, drive, options)
    said, _, places = outcomes[0]
    assert places > 10
    assert said == [f"[Errno 28] No space left on device: {WHAT_TO_DO.format(drive)}"] * places
    whole, before, after = (launch(train_again, drive, name, places + 3) for name in (None, "1", "2"))
    for rank, (there, found, _) in enumerate(outcomes):
        assert there == said
        assert found == whole[rank][1 : places + 1]
        assert before[rank] == whole[rank][1:]
        assert after[rank] == whole[rank][places + 1 :]


def test_a_run_that_found_no_room_goes_on_when_there_is_some(drive: Path, tmp_path: Path) -> None:
    job = (*TINY, "run.name=run", "train.steps=8", "train.checkpoint_every=2", "train.keep_checkpoints=2")
    train(tmp_path, *job, world=2)
    whole = tmp_path / "runs/run"
    room = sum(file.stat().st_size for file in (whole / "checkpoints").rglob("*") if file.is_file()) // 2
    resize(drive, f"size={room * 5 // 2}")
    ended = Job(tmp_path, *job, f"run.folder={drive}", world=2).wait()
    assert ended.codes == [1, 1], ended
    for rank, error in enumerate(ended.err):
        assert f"rank {rank}: error: [Errno 28] No space left on device: make room in {drive}/run" in error
        assert "Traceback" not in error
    assert checkpoints(drive / "run") == ["step-000002", "step-000004"]
    resize(drive, f"size={PLENTY}")
    resumed = train(tmp_path, *job, f"run.folder={drive}", world=2)
    assert f"resuming {drive}/run after step 4" in resumed.out[0]
    assert losses(drive / "run") == losses(whole)


def unreserved(*_: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def made_below(drive: Path) -> tuple[nn.Module, PagedOptimizer]:
    """Within a budget, on a drive that can't reserve room beforehand."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fallocate", unreserved)
        model = cd.shard(Stack(48, 200), memory=cd.Memory("900KB", nvme=f"{drive}:32MB", activations="offload"))
    return model, cd.AdamW(model.parameters(), lr=1e-2)


def loss_of(model: nn.Module, step: int) -> Tensor:
    """From step 2 on there are more activations, which need room that nothing has had before."""
    output: Tensor = model(Sample(0, step, 0).inputs(48 if step > 1 else 4, 8))
    return output.square().mean()


def train_below(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def fill_up(drive: Path, room: int) -> None:
    meet()
    on_rank_zero(lambda: resize(drive, f"size={taken(drive)[0] + room}"))


def step_without_room(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, drive: Path, when: str, room: int
) -> None:
    if when == "backward":
        fill_up(drive, room)
    loss_of(model, step).backward()
    fill_up(drive, room)
    optimizer.step()


def train_into_a_full_drive(drive: Path, checkpoint: Path, when: str, room: int) -> tuple[str, str, list[float]]:
    """What a step says that finds no room in its backward or update, the update after it, and losses after a load."""
    model, optimizer = made_below(drive)
    done = 2 if when == "backward" else 0
    train_below(model, optimizer, range(done))
    cd.save(checkpoint, model=model, optimizer=optimizer, step=done)
    with pytest.raises(RuntimeError) as full:
        step_without_room(model, optimizer, done, drive, when, room)
    with pytest.raises(RuntimeError) as refused:
        optimizer.step()
    meet()
    on_rank_zero(partial(resize, drive, f"size={PLENTY}"))
    model, optimizer = made_below(drive)
    first = cd.load(checkpoint, model=model, optimizer=optimizer)["step"]
    return str(full.value), str(refused.value), train_below(model, optimizer, range(first, 4))


def train_with_room() -> list[float]:
    torch.manual_seed(0)
    model = cd.shard(Stack(48, 200))
    return train_below(model, cd.AdamW(model.parameters(), lr=1e-2), range(4))


@pytest.mark.parametrize("room", [0, BLOCK], ids=["none", "half a page"])
@pytest.mark.parametrize("when", ["backward", "update"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_step_that_finds_no_room_is_not_taken(when: str, room: int, world: int, drive: Path, tmp_path: Path) -> None:
    whole = launch(train_with_room, world=world)
    page = {"backward": "activations of unit", "update": "(blocks|the root unit)"}[when]
    where = re.escape(f"can't be written to nvme (the unnamed file in {drive}): No space left on device")
    names_page = re.compile(rf"{page}.* page \d+ {where}").fullmatch
    outcomes = launch(train_into_a_full_drive, drive, tmp_path / "checkpoint", when, room, world=world)
    assert any(names_page(full) for full, _, _ in outcomes)
    for (full, refused, found), expected in zip(outcomes, whole, strict=True):
        assert names_page(full) or re.fullmatch(r"rank [01] raised in an update, and says why: load a checkpoint", full)
        assert "raised" in refused
        assert found == expected[2 if when == "backward" else 0 :]
