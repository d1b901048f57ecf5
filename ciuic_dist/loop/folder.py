"""The folder of a run: ``config.yaml``, ``plan.json``, ``metrics.jsonl``, plots and ``checkpoints/step-000123``."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

import yaml

from ciuic_dist.config import Config, ConfigError, flatten, to_mapping

# What a checkpoint depends on. Anything else (learning rate, steps, stage, ...) may change on resume.
_FIXED = re.compile(r"(model|data)\..*|train\.(global_batch|seed)|engine\.name")
_FIXED_TOO = {"deepspeed": {"engine.stage", "train.precision"}}  # its files depend on them
_COMPLETE = re.compile(r"step-(\d{6,})")


class RunFolder:
    """Paths of one run. Only rank 0 calls the methods that change the folder."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.path = Path(config.run.folder) / config.run_name
        self.metrics = self.path / "metrics.jsonl"
        self.plan = self.path / "plan.json"
        self._settings = self.path / "config.yaml"
        self._checkpoints = self.path / "checkpoints"
        self._lock: int | None = None

    def claim(self) -> tuple[int, list[str]]:
        """Take the folder for this process, clear away what a crash left, write ``config.yaml``.

        Returns the step of the newest complete checkpoint (0 without one), and the settings that are not what
        they were there. A finished run keeps its ``config.yaml``. Raises ConfigError if another process has
        the folder, or if its checkpoints can't be continued with these settings.
        """
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{self.path} is in use by another process: wait for it, or give another run.name"
            raise ConfigError(message) from None
        step = self.newest()
        changes = self._changes() if step else []
        for entry in self._checkpoints.iterdir():
            if not _COMPLETE.fullmatch(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if step < self._config.train.steps:
            text = yaml.safe_dump(to_mapping(self._config), sort_keys=False)
            self._settings.write_text(text, encoding="utf-8")
        return step, changes

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after ``step`` steps belongs."""
        return self._checkpoints / f"step-{step:06d}"

    def newest(self) -> int:
        """The step of the newest complete checkpoint, 0 without one."""
        return max(self._steps(), default=0)

    def keep_plan(self, text: str | None) -> None:
        """Write the plan that is followed, or none; a reader sees the old one or the new one."""
        if text is None:
            self.plan.unlink(missing_ok=True)
            return
        draft = self.plan.with_name(f"{self.plan.name}.partial")
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.plan)

    def prune(self) -> None:
        """Delete all but the newest checkpoints; call it when the newest is complete."""
        for step in sorted(self._steps())[: -self._config.train.keep_checkpoints]:
            # Renamed first: a crash half-way must not leave something that looks complete.
            doomed = self.checkpoint(step).rename(self._checkpoints / f"old-{step:06d}")
            shutil.rmtree(doomed)

    def _steps(self) -> list[int]:
        names = (_COMPLETE.fullmatch(entry.name) for entry in self._checkpoints.iterdir())
        return [int(name[1]) for name in names if name]

    def _changes(self) -> list[str]:
        """``config.yaml`` against the settings of now. Raises ConfigError for what a checkpoint depends on."""
        before = flatten(yaml.safe_load(self._settings.read_text(encoding="utf-8")))
        now = flatten(to_mapping(self._config))
        changes = {
            key: f"{key} ({before.get(key)} there, {now.get(key)} now)"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and not key.startswith("run.")
        }
        too = _FIXED_TOO.get(self._config.engine.name, set())
        fatal = [change for key, change in changes.items() if _FIXED.fullmatch(key) or key in too]
        if fatal:
            raise ConfigError(
                f"{self.path} holds a run with other settings: {', '.join(fatal)}; "
                f"give another run.name or delete that folder"
            )
        return list(changes.values())
