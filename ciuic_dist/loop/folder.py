"""The folder of a run: ``config.yaml``, ``metrics.jsonl``, plots and ``checkpoints/step-000123``."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from ciuic_dist.config import Config, ConfigError, flatten, to_mapping

# What a checkpoint depends on. Anything else (learning rate, steps, stage, ...) may change on resume.
_FIXED = re.compile(r"(model|data)\..*|train\.(global_batch|seed)|engine\.name")
_COMPLETE = re.compile(r"step-(\d{6,})")


class RunFolder:
    """Paths of one run. Only rank 0 calls the methods that change the folder."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.path = Path(config.run.folder) / config.run_name
        self.metrics = self.path / "metrics.jsonl"
        self._checkpoints = self.path / "checkpoints"
        self._lock: int | None = None

    def claim(self) -> int:
        """Take the folder for this process, clear away what a crash left, write ``config.yaml``.

        Returns the step of the newest complete checkpoint, 0 without one. Raises ConfigError if another
        process has the folder, or if its checkpoints were made with settings that differ.
        """
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{self.path} is in use by another process: wait for it, or give another run.name"
            raise ConfigError(message) from None
        step = max(self._steps(), default=0)
        if step:
            self._compare()
        for entry in self._checkpoints.iterdir():
            if not _COMPLETE.fullmatch(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        text = yaml.safe_dump(to_mapping(self._config), sort_keys=False)
        (self.path / "config.yaml").write_text(text, encoding="utf-8")
        return step

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after ``step`` steps belongs."""
        return self._checkpoints / f"step-{step:06d}"

    def prune(self) -> None:
        """Delete all but the newest checkpoints; call it when the newest is complete."""
        for step in sorted(self._steps())[: -self._config.train.keep_checkpoints]:
            # Renamed first: a crash half-way must not leave something that looks complete.
            doomed = self.checkpoint(step).rename(self._checkpoints / f"old-{step:06d}")
            shutil.rmtree(doomed)

    def _steps(self) -> list[int]:
        names = (_COMPLETE.fullmatch(entry.name) for entry in self._checkpoints.iterdir())
        return [int(name[1]) for name in names if name]

    def _compare(self) -> None:
        file = self.path / "config.yaml"
        before = _fixed(yaml.safe_load(file.read_text(encoding="utf-8")))
        now = _fixed(to_mapping(self._config))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            listed = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} now)" for key in changed)
            raise ConfigError(
                f"{self.path} holds a run with other settings: {listed}; give another run.name or delete that folder"
            )


def _fixed(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flatten(tree).items() if _FIXED.fullmatch(key)}
