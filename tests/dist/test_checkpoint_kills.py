"""A process that saves or prunes may be killed before any change it makes to the disk: a whole checkpoint is left."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.config import Config, ModelConfig, RunConfig, TrainConfig
from ciuic_dist.loop.folder import RunFolder
from tests.dist.killing import CHANGES, Changes, unsynced, was_killed
from tests.dist.launch import launch


def run_folder(folder: Path) -> RunFolder:
    run = RunConfig(name="run", folder=str(folder))
    return RunFolder(Config(model=ModelConfig("gpt2"), run=run, train=TrainConfig(keep_checkpoints=2)))


def model_of(step: int, version: int) -> tuple[nn.Module, Any]:
    """Its values tell the step and the version."""
    model = cd.shard(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    optimizer = cd.AdamW(model.parameters())
    if version:
        torch.manual_seed(step * 10 + version)
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, step: int, version: int) -> None:
    torch.manual_seed(0)
    model, optimizer = model_of(step, version)
    cd.save(run_folder(folder).checkpoint(step), model=model, optimizer=optimizer, step=step, version=version)


def overwrite(folder: Path) -> None:
    """The newest checkpoint, which is there."""
    save(folder, 3, 2)


def save_anew(folder: Path) -> None:
    """One more than are kept, as a run does."""
    save(folder, 4, 1)
    run_folder(folder).prune()


def begin_again(folder: Path) -> None:
    """What a killed run left is cleared away."""
    folder_of_run = run_folder(folder)
    folder_of_run.claim()
    folder_of_run.release()


def with_leftovers(folder: Path) -> None:
    """What kills may have left, all at once."""
    checkpoints = run_folder(folder).checkpoint(0).parent
    (checkpoints / "step-000003").rename(checkpoints / "step-000003.previous")
    for name in ("step-000004.partial", "step-000001.previous.partial"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "rank-00000.pages").write_bytes(b"half")


def dying(work: Callable[[Path], None], folder: Path, last: int, torn: float) -> None:
    """``work`` until before its ``last``-th change to the disk; of a write there a part is still written."""
    with Changes(last, torn):
        work(folder)


def saved_values(step: int, version: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [p.detach().clone() for p in model_of(step, version)[0].parameters()]


def kill_everywhere(
    work: Callable[[Path], None], before: Callable[[Path], None], versions: set[tuple[int, int]], folder: Path
) -> int:
    """Kill ``work`` at each place and check what is left; how many places there are."""
    expected = {key: saved_values(*key) for key in versions}
    with unsynced():
        begun = folder / "begun"
        begin_again(begun)
        for step in (1, 2, 3):
            save(begun, step, 1)
        before(begun)
        torn = random.Random(0)
        for kills in count():
            here = folder / str(kills)
            shutil.copytree(begun, here)
            killed = was_killed(partial(dying, work, here, kills + 1, torn.random()))
            check_run(here, expected)
            if not killed:
                return kills
    raise AssertionError("unreachable")


def nothing(folder: Path) -> None:
    """Before anything."""


@pytest.mark.parametrize(
    ("work", "before", "versions", "places"),
    [
        (overwrite, nothing, {(1, 1), (2, 1), (3, 1), (3, 2)}, 40),
        (save_anew, nothing, {(1, 1), (2, 1), (3, 1), (4, 1)}, 45),
        (begin_again, with_leftovers, {(1, 1), (2, 1), (3, 1)}, 10),
    ],
)
def test_a_kill_anywhere_leaves_whole_checkpoints(
    work: Callable[[Path], None],
    before: Callable[[Path], None],
    versions: set[tuple[int, int]],
    places: int,
    tmp_path: Path,
) -> None:
    assert launch(kill_everywhere, work, before, versions, tmp_path, world=1)[0] > places


def check_run(folder: Path, expected: dict[tuple[int, int], list[Tensor]]) -> None:
    """A new start finds the newest checkpoint, and all there are load with the values that were saved."""
    begin_again(folder)
    run = run_folder(folder)
    assert run.newest() >= 3
    names = {entry.name for entry in run.checkpoint(0).parent.iterdir()}
    assert names == {run.checkpoint(step).name for step in run.steps()}
    for step in run.steps():
        model, optimizer = model_of(0, 0)
        extra = cd.load(run.checkpoint(step), model=model, optimizer=optimizer)
        assert extra["step"] == step
        values = expected[step, extra["version"]]
        assert all(torch.equal(p, value) for p, value in zip(model.parameters(), values, strict=True))


class Journal:
    """What was changed on a disk since it was last synced."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.unsynced: set[Path] = set()
        self._originals = {name: getattr(os, name) for name in CHANGES}
        for name in CHANGES:
            patch.setattr(os, name, getattr(self, name))

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            self.unsynced |= {Path(path), Path(path).parent}
        descriptor: int = self._originals["open"](path, flags, *args, **kwargs)
        return descriptor

    def write(self, descriptor: int, content: Any) -> int:
        self.unsynced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        count: int = self._originals["write"](descriptor, content)
        return count

    def fsync(self, descriptor: int) -> None:
        self._originals["fsync"](descriptor)
        self.unsynced.discard(Path(f"/proc/self/fd/{descriptor}").readlink())

    def mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self._originals["mkdir"](path, *args, **kwargs)
        self.unsynced.add(Path(path).parent)

    def rename(self, old: Any, new: Any, **kwargs: Any) -> None:
        if not Path(new).name.endswith((".partial", ".previous")):
            assert not {file for file in self.unsynced if file.is_relative_to(old)}, "it appears before it is durable"
        self._originals["rename"](old, new, **kwargs)
        self.unsynced |= {Path(old).parent, Path(new).parent}

    def rmdir(self, path: Any, **kwargs: Any) -> None:
        self._originals["rmdir"](path, **kwargs)

    def unlink(self, path: Any, **kwargs: Any) -> None:
        assert not self.unsynced, f"{path} is deleted before what replaces it is durable"
        self._originals["unlink"](path, **kwargs)


@pytest.mark.parametrize("work", [overwrite, save_anew])
def test_nothing_appears_before_it_is_durable_or_goes_before_what_replaces_it_is(
    work: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_again(tmp_path)
    for step in (1, 2, 3):
        save(tmp_path, step, 1)
    journal = Journal(monkeypatch)
    work(tmp_path)
    monkeypatch.undo()
    assert not journal.unsynced
