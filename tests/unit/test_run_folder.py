"""A run's folder: what a crash leaves is cleared, what is complete is kept, one process has it at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from ciuic_dist.config import Config, ConfigError, EngineConfig, ModelConfig, RunConfig, TrainConfig, from_mapping
from ciuic_dist.loop.folder import RunFolder
from tests.damage import damages
from tests.dist.killing import Changes, was_killed


def config_in(folder: Path, train: TrainConfig, engine: EngineConfig | None = None) -> Config:
    run = RunConfig(name="run", folder=str(folder))
    return Config(model=ModelConfig("gpt2"), run=run, train=train, engine=engine or EngineConfig())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(config_in(tmp_path, TrainConfig(keep_checkpoints=2)))
    yield folder
    folder.release()


def names(folder: RunFolder) -> list[str]:
    return sorted(entry.name for entry in (folder.path / "checkpoints").iterdir())


def test_a_new_folder_has_no_step_and_the_whole_config(folder: RunFolder) -> None:
    assert folder.claim() == (0, [])
    written = yaml.safe_load((folder.path / "config.yaml").read_text())
    assert from_mapping(written).train.keep_checkpoints == 2


def test_the_newest_complete_checkpoint_counts_and_the_rest_of_a_crash_goes(folder: RunFolder) -> None:
    folder.claim()
    folder.release()
    for name in ("step-000007", "step-1000000", "step-000009.partial", "old-000003"):
        (folder.path / "checkpoints" / name).mkdir()
    assert folder.claim()[0] == 1_000_000
    assert names(folder) == ["step-000007", "step-1000000"]


def test_only_the_newest_are_kept(folder: RunFolder) -> None:
    folder.claim()
    for step in (2, 10, 1, 1_000_000):
        folder.checkpoint(step).mkdir()
    folder.prune()
    assert names(folder) == ["step-000010", "step-1000000"]


def test_a_pinned_checkpoint_stays(folder: RunFolder) -> None:
    folder.claim()
    for step in (1, 2, 3, 4):
        folder.checkpoint(step).mkdir()
    (folder.checkpoint(1) / "pinned").touch()
    folder.prune()
    assert names(folder) == ["step-000001", "step-000003", "step-000004"]


def test_what_is_put_aside_counts_no_more_and_stays(folder: RunFolder) -> None:
    folder.claim()
    asides = []
    for _ in range(3):
        folder.checkpoint(2).mkdir()
        asides.append(folder.put_aside(2).name)
    for step in (3, 4, 5):
        folder.checkpoint(step).mkdir()
    folder.prune()
    folder.release()
    assert asides == ["step-000002.corrupt", "step-000002.corrupt-2", "step-000002.corrupt-3"]
    assert folder.claim()[0] == 5
    assert names(folder) == [*asides, "step-000004", "step-000005"]


def test_what_a_crash_took_from_its_place_is_put_back(folder: RunFolder) -> None:
    folder.claim()
    folder.release()
    for name in ("step-000001", "step-000002.previous", "step-000001.previous"):
        (folder.path / "checkpoints" / name).mkdir()
        (folder.path / "checkpoints" / name / "manifest.json").touch()
    assert folder.claim()[0] == 2
    assert names(folder) == ["step-000001", "step-000002"]


def test_a_folder_in_use_is_refused_until_it_is_released(folder: RunFolder, tmp_path: Path) -> None:
    folder.claim()
    other = RunFolder(config_in(tmp_path, TrainConfig()))
    with pytest.raises(ConfigError, match="in use by another process"):
        other.claim()
    other.release()
    folder.release()
    assert folder.claim() == (0, [])


def test_a_folder_in_which_nothing_was_trained_goes_with_all_that_was_made_for_it(tmp_path: Path) -> None:
    folder = RunFolder(config_in(tmp_path / "new" / "runs", TrainConfig()))
    folder.claim()
    folder.keep_plan("{}")
    folder.metrics.touch()
    folder.drop_if_unused()
    folder.release()
    assert not list(tmp_path.iterdir())
    assert folder.claim() == (0, [])
    (tmp_path / "new" / "other").touch()
    folder.drop_if_unused()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "other"]
    folder.release()


@pytest.mark.parametrize("kept", ["metrics.jsonl", "checkpoints/step-000001.partial", "notes.txt"])
def test_a_folder_with_something_to_keep_stays(kept: str, folder: RunFolder) -> None:
    folder.claim()
    (folder.path / kept).write_text("{}\n")
    there = set(folder.path.rglob("*"))
    folder.drop_if_unused()
    assert set(folder.path.rglob("*")) == there


def test_a_folder_that_was_there_before_stays(folder: RunFolder) -> None:
    folder.path.mkdir()
    folder.claim()
    folder.drop_if_unused()
    assert folder.path.exists()


def test_only_the_process_that_has_the_folder_deletes_it(folder: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(config_in(tmp_path, TrainConfig()))
    other.drop_if_unused()
    folder.claim()
    with pytest.raises(ConfigError, match="in use"):
        other.claim()
    other.drop_if_unused()
    assert folder.path.exists()
    folder.release()
    folder.drop_if_unused()
    assert folder.path.exists()


def test_what_comes_while_it_is_deleted_stays(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.claim()
    (folder.path / "notes").write_text("kept", "utf-8")
    monkeypatch.setattr(folder, "_is_unused", lambda: True)  # it wasn't there then
    folder.drop_if_unused()
    assert (folder.path / "notes").read_text("utf-8") == "kept"


def test_a_folder_that_could_not_be_locked_is_not_this_process_s(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        monkeypatch.undo()
        folder.claim()
        raise OSError(errno.ENOLCK, "no locks here")

    other = RunFolder(config_in(tmp_path, TrainConfig()))
    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="no locks here"):
        other.claim()
    other.drop_if_unused()
    assert folder.path.exists()


@pytest.mark.parametrize("when", [os.open, fcntl.flock])
def test_a_folder_that_its_process_deletes_just_then_is_in_use(
    when: Callable[..., Any], folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RunFolder(config_in(tmp_path, TrainConfig()))
    folder.claim()

    def meanwhile(*args: Any) -> Any:
        monkeypatch.undo()
        folder.drop_if_unused()
        folder.release()
        return when(*args)

    monkeypatch.setattr(fcntl if when is fcntl.flock else os, when.__name__, meanwhile)
    with pytest.raises(ConfigError, match="in use by another process"):
        other.claim()
    assert not folder.path.exists()
    assert other.claim() == (0, [])
    other.release()


def test_other_settings_are_refused_only_where_there_is_something_to_lose(folder: RunFolder, tmp_path: Path) -> None:
    folder.claim()
    folder.release()
    other = RunFolder(config_in(tmp_path, TrainConfig(seed=5, steps=7)))
    assert other.claim() == (0, [])
    other.release()
    other.checkpoint(3).mkdir()
    with pytest.raises(ConfigError, match=r"other settings: train\.seed \(5 there, 0 now\); give another run\.name"):
        folder.claim()


def test_damaged_settings_are_refused_in_words_or_named(folder: RunFolder) -> None:
    folder.claim()
    folder.checkpoint(3).mkdir()
    folder.release()
    refused = 0
    for _ in damages(folder.path / "config.yaml", 300):
        try:
            folder.claim()
        except ConfigError as error:
            refused += "give another run.name" in str(error)
        folder.release()
    assert refused > 100
    (folder.path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml can't be read"):
        folder.claim()


@pytest.mark.parametrize("what", ["config.yaml", "plan.json"])
def test_a_kill_leaves_the_old_text_or_the_new_one(what: str, folder: RunFolder, tmp_path: Path) -> None:
    folder.claim()
    folder.keep_plan("{}")
    folder.release()
    file, other = folder.path / what, RunFolder(config_in(tmp_path, TrainConfig(steps=7)))

    def write(last: int) -> None:
        with Changes(last, torn=0.5):
            other.claim() if what == "config.yaml" else other.keep_plan("[1, 2]")

    left = [file.read_bytes()]
    while was_killed(partial(write, len(left))):
        left.append(file.read_bytes())
    left.append(file.read_bytes())
    assert len({*left}) == 2, "neither is half written"
    assert len(left) > 5


def test_engine_and_stage_may_change(tmp_path: Path) -> None:
    def claim(name: Literal["paged", "deepspeed"], stage: int) -> tuple[int, list[str]]:
        folder = RunFolder(config_in(tmp_path, TrainConfig(), EngineConfig(name, stage)))
        try:
            return folder.claim()
        finally:
            folder.checkpoint(1).mkdir(exist_ok=True)
            folder.release()

    claim("paged", 3)
    assert claim("paged", 1) == (1, ["engine.stage (3 there, 1 now)"])
    assert claim("deepspeed", 1) == (1, ["engine.name (paged there, deepspeed now)"])
