"""What a checkpoint cannot replace, and what it cannot be loaded into, stays as it was, and every rank says why."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

import ciuic_dist as cd
from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.folder import whole_or_absent
from ciuic_dist.comm.groups import rank
from ciuic_dist.comm.together import on_rank_zero
from ciuic_dist.optim.paged import PagedOptimizer, StateValues
from tests.dist.launch import launch
from tests.dist.models import Stack
from tests.dist.stored import everything_in, write_plain


class TwoArguments(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def trained(
    width: int = 12, kind: type[Optimizer] = torch.optim.AdamW, **options: Any
) -> tuple[nn.Module, PagedOptimizer]:
    """A sharded model after one step."""
    torch.manual_seed(0)
    model = cd.shard(Stack(width=width))
    optimizer = cd.paged(kind, model.parameters(), lr=0.01, **options)
    model(torch.ones(2, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def said(work: Callable[[], Any]) -> str:
    """The error that ``work`` raises, in words."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 (it is what is returned)
        return f"{type(error).__name__}: {error}"
    return "no error"


def save_to(path: Path) -> str:
    model, optimizer = trained()
    return said(lambda: cd.save(path, model=model, optimizer=optimizer))


@pytest.mark.parametrize("name", ["mine", "mine/file", "new"])
def test_a_folder_that_is_no_checkpoint_is_not_replaced(name: str, tmp_path: Path) -> None:
    mine = tmp_path / ("new.previous" if name == "new" else "mine")
    mine.mkdir()
    (mine / "file").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    errors = launch(save_to, tmp_path / name)
    assert all(error.startswith("FileExistsError") and "not a checkpoint" in error for error in errors), errors
    assert sorted(tmp_path.rglob("*")) == before
    assert (mine / "file").read_text() == "precious"


def test_an_empty_folder_and_a_checkpoint_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    for _ in range(2):
        assert launch(save_to, path) == ["no error"] * 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def fail_inside(path: Path, failing: int) -> str:
    def write() -> None:
        with whole_or_absent(path):
            if rank() == failing:
                raise OSError("no space left")

    return said(write)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_in_the_folder_is_raised_on_all(failing: int, tmp_path: Path) -> None:
    assert launch(fail_inside, tmp_path / "new", failing) == ["OSError: no space left"] * 2
    assert not (tmp_path / "new").exists()


def test_an_error_of_rank_zero_making_the_folder_is_raised_on_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    errors = launch(save_to, tmp_path / "file" / "new")
    assert errors[0] == errors[1] != "no error"


def save_on_full_disks(path: Path, full: int) -> tuple[list[str], list[Any], list[Any]]:
    """What a save says that can't be written on one rank, and then one that can; the state before and as loaded."""
    model, optimizer = trained()
    cd.save(path, model=model, optimizer=optimizer)
    before = snapshot(model, optimizer)
    write = disk.write

    def no_room(descriptor: int, content: disk.Buffer) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    disk.write = no_room if rank() == full else write
    try:
        errors = [said(lambda: cd.save(path, model=model, optimizer=optimizer, step=2))]
    finally:
        disk.write = write
    assert cd.load(path, model=model, optimizer=optimizer) == {}
    after = snapshot(model, optimizer)
    errors += [said(lambda: cd.save(path, model=model, optimizer=optimizer, bad=lambda: None))]
    errors += [said(lambda: cd.save(path, model=model, optimizer=optimizer, step=3))]
    return errors, before, after


@pytest.mark.parametrize("full", [0, 1])
def test_what_one_rank_cannot_write_is_an_error_on_all_and_leaves_the_checkpoint_before(
    full: int, tmp_path: Path
) -> None:
    for errors, before, after in launch(save_on_full_disks, tmp_path / "c", full):
        assert errors[0].startswith("NoRoom: [Errno 28] no space left on device: ")
        assert "pickle" in errors[1]
        assert errors[2] == "no error"
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def fail_on_rank_zero() -> str:
    def decide() -> None:
        raise TwoArguments("not", "portable")

    return said(lambda: on_rank_zero(decide))


def test_an_error_that_does_not_unpickle_goes_to_the_others_in_words() -> None:
    assert launch(fail_on_rank_zero) == ["TwoArguments: not portable", "RuntimeError: TwoArguments: not portable"]


def snapshot(model: nn.Module, optimizer: PagedOptimizer) -> list[Any]:
    """Copies of the parameters and of all optimizer state on this rank."""
    state = [
        {key: (value.read() if isinstance(value, StateValues) else value).clone() for key, value in state.items()}
        for _, _, state in optimizer.piece_states()
    ]
    return [[p.detach().clone() for p in model.parameters()], state, optimizer.settings()]


def load_what_does_not_fit(path: Path, kind: str) -> str:
    if kind == "another model":
        model, optimizer = trained(width=6)
    else:
        model, optimizer = trained()
    cd.save(path, model=model, optimizer=optimizer)
    model, optimizer = trained()
    if kind == "another number of groups":
        spare = cd.shard(nn.Linear(3, 3))
        optimizer.add_param_group({"params": spare.parameters()})
    if kind == "a damaged file" and rank() == 0:
        for file in path.glob("*.pages"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    on_rank_zero(lambda: None)
    before = snapshot(model, optimizer)
    error = said(lambda: cd.load(path, model=model, optimizer=optimizer))
    torch.testing.assert_close(snapshot(model, optimizer), before, rtol=0, atol=0)
    return error


@pytest.mark.parametrize("kind", ["another model", "another number of groups", "a damaged file"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_refused_load_changes_nothing(kind: str, world: int, tmp_path: Path) -> None:
    errors = launch(load_what_does_not_fit, tmp_path / "checkpoint", kind, world=world)
    expected = "CorruptCheckpoint" if kind == "a damaged file" else "ValueError"
    assert all(error.startswith(expected) for error in errors), errors


def as_before_kinds(path: Path) -> None:
    """Make a checkpoint one of torch.distributed.checkpoint that was saved before the optimizer's kind was."""
    entries = everything_in(path)
    kinds = [name for name in entries if "optimizer.kind" in name]
    assert len(kinds) == 1
    del entries[kinds[0]]
    shutil.rmtree(path)
    write_plain(path, entries)


def load_into(path: Path, saved: dict[str, Any], here: dict[str, Any], old: bool) -> str:
    model, optimizer = trained(**saved)
    cd.save(path, model=model, optimizer=optimizer)
    if old:
        on_rank_zero(lambda: as_before_kinds(path))
    model, optimizer = trained(**here)
    before = snapshot(model, optimizer)
    error = said(lambda: cd.load(path, model=model, optimizer=optimizer))
    if error != "no error":
        torch.testing.assert_close(snapshot(model, optimizer), before, rtol=0, atol=0)
    return error


MOMENTUM = {"kind": SGD, "momentum": 0.9}


@pytest.mark.parametrize(
    ("saved", "here", "old", "message"),
    [
        (MOMENTUM, {}, False, "ValueError: the optimizer state that was saved is SGD's, the optimizer here is AdamW: "),
        ({}, MOMENTUM, False, "ValueError: the optimizer state that was saved is AdamW's, the optimizer here is SGD: "),
        ({"kind": Adam}, {}, False, "ValueError: the optimizer state that was saved is Adam's, "),
        (MOMENTUM, {}, True, "ValueError: the optimizer state that was saved is momentum_buffer, AdamW here has exp_a"),
        ({}, MOMENTUM, True, "ValueError: the optimizer state that was saved is exp_avg, exp_avg_sq, step, SGD here "),
        ({"amsgrad": True}, {}, True, "no error"),
        ({}, {"amsgrad": True}, False, "no error"),
    ],
)
def test_the_state_of_another_kind_of_optimizer_is_refused(
    saved: dict[str, Any], here: dict[str, Any], old: bool, message: str, tmp_path: Path
) -> None:
    for error in launch(load_into, tmp_path / "checkpoint", saved, here, old):
        assert error.startswith(message)


def load_where_one_rank_sees_nothing(path: Path) -> str:
    model, optimizer = trained()
    cd.save(path, model=model, optimizer=optimizer)
    mine = path if rank() == 0 else path.with_name("elsewhere")
    return said(lambda: cd.load(mine, model=model, optimizer=optimizer))


def test_a_checkpoint_that_one_rank_does_not_see_is_an_error_on_all(tmp_path: Path) -> None:
    errors = launch(load_where_one_rank_sees_nothing, tmp_path / "checkpoint")
    assert errors == [f"FileNotFoundError: there is no checkpoint at {tmp_path / 'elsewhere'}"] * 2
