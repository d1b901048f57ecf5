"""A run's folder: what a crash leaves is cleared, what is complete is kept, one process has it at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import yaml

from ciuic_dist.config import Config, ConfigError, EngineConfig, ModelConfig, RunConfig, TrainConfig, from_mapping
from ciuic_dist.loop.folder import RunFolder


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


def test_a_folder_in_use_is_refused_until_it_is_released(folder: RunFolder, tmp_path: Path) -> None:
    folder.claim()
    other = RunFolder(config_in(tmp_path, TrainConfig()))
    with pytest.raises(ConfigError, match="in use by another process"):
        other.claim()
    other.release()
    folder.release()
    assert folder.claim() == (0, [])


def test_other_settings_are_refused_only_where_there_is_something_to_lose(folder: RunFolder, tmp_path: Path) -> None:
    folder.claim()
    folder.release()
    other = RunFolder(config_in(tmp_path, TrainConfig(seed=5, steps=7)))
    assert other.claim() == (0, [])
    other.release()
    other.checkpoint(3).mkdir()
    with pytest.raises(ConfigError, match=r"other settings: train\.seed \(5 there, 0 now\); give another run\.name"):
        folder.claim()


def test_the_stage_may_change_only_where_the_engine_can_read_another_ones_checkpoints(tmp_path: Path) -> None:
    def claim(name: Literal["paged", "deepspeed"], stage: int) -> tuple[int, list[str]]:
        folder = RunFolder(config_in(tmp_path / name, TrainConfig(), EngineConfig(name, stage)))
        try:
            return folder.claim()
        finally:
            folder.checkpoint(1).mkdir(exist_ok=True)
            folder.release()

    claim("paged", 3)
    assert claim("paged", 1) == (1, ["engine.stage (3 there, 1 now)"])
    claim("deepspeed", 3)
    with pytest.raises(ConfigError, match=r"other settings: engine\.stage \(3 there, 1 now\)"):
        claim("deepspeed", 1)
