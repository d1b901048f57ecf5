"""The folder of a run: ``config.yaml``, ``plan.json``, ``metrics.jsonl``, plots and ``checkpoints/step-000123``.

A checkpoint with a file called ``pinned`` in it is never deleted; one that didn't verify is put aside, as
``step-000123.corrupt``.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from ciuic_dist.checkpoint import disk
from ciuic_dist.checkpoint.errors import needing_room
from ciuic_dist.checkpoint.folder import discard, recover
from ciuic_dist.config import Config, ConfigError, flatten, to_mapping

# What a checkpoint depends on. Anything else (learning rate, steps, stage, ...) may change on resume.
_FIXED = re.compile(r"(model|data)\..*|train\.(global_batch|seed)")
_COMPLETE = re.compile(r"step-(\d{6,})")
_KEPT = re.compile(rf"{_COMPLETE.pattern}(\.corrupt(-\d+)?)?")
_PINNED = "pinned"


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
        self._made: list[Path] = []  # by this process: the folder, and those it lies in

    def claim(self) -> tuple[int, list[str]]:
        """Take the folder for this process, clear away what a crash left, write ``config.yaml``.

        Returns the step of the newest complete checkpoint (0 without one), and the settings that are not what
        they were there. A finished run keeps its ``config.yaml``. Raises ConfigError if another process has
        the folder, or if its checkpoints can't be continued with these settings.
        """
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self._lock = self._locked()
        if self._lock is None:
            raise ConfigError(f"{self.path} is in use by another process: wait for it, or give another run.name")
        for entry in self._checkpoints.glob("step-*.previous"):
            recover(entry.with_suffix(""))
        step = self.newest()
        changes = self._changes() if step else []
        for entry in self._checkpoints.iterdir():
            if not _KEPT.fullmatch(entry.name):
                disk.delete(entry)
        if step < self._config.train.steps:
            _replace(self._settings, yaml.safe_dump(to_mapping(self._config), sort_keys=False))
        return step, changes

    def drop_if_unused(self) -> None:
        """Delete the folder if this process made it and has it, and there is no more in it than settings and a plan."""
        if self._lock is None or not self._made or not self._is_unused():
            return
        with suppress(OSError):  # something has come there meanwhile, and stays
            for file in (self._settings, self.plan, self.metrics):
                disk.delete(file)
            for folder in (self._checkpoints, *self._made):
                folder.rmdir()

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
        return max(self.steps(), default=0)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        names = (_COMPLETE.fullmatch(entry.name) for entry in self._checkpoints.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def put_aside(self, step: int) -> Path:
        """Keep a checkpoint that didn't verify where it doesn't count; returns where."""
        aside = self.checkpoint(step).with_suffix(".corrupt")
        for number in count(2):
            if not aside.exists():
                break
            aside = aside.with_suffix(f".corrupt-{number}")
        disk.rename(self.checkpoint(step), aside)
        disk.sync_folder(self._checkpoints)
        return aside

    def keep_plan(self, text: str | None) -> None:
        """Write the plan that is followed, or none; a reader sees the old one or the new one."""
        if text is None:
            self.plan.unlink(missing_ok=True)
            return
        _replace(self.plan, text)

    def read_plan(self) -> str | None:
        """What ``keep_plan`` wrote last."""
        return self.plan.read_text(encoding="utf-8") if self.plan.exists() else None

    def prune(self) -> None:
        """Delete the checkpoints that are neither among the newest nor pinned; call it when the newest is durable."""
        for step in self.steps()[: -self._config.train.keep_checkpoints]:
            if not (self.checkpoint(step) / _PINNED).exists():
                discard(self.checkpoint(step))

    def _locked(self) -> int | None:
        """The folder's descriptor; None where another process has it, or has deleted it since it was opened."""
        with ExitStack() as stack:
            try:
                self._checkpoints.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock), self.path.stat()):
                    stack.pop_all()
                    return lock
            except (BlockingIOError, FileNotFoundError):
                pass
        return None

    def _is_unused(self) -> bool:
        """Whether no step was recorded and no checkpoint begun."""
        ours = {self._settings, self.plan, self._checkpoints}
        return all(
            entry in ours or (entry == self.metrics and not entry.stat().st_size) for entry in self.path.rglob("*")
        )

    def _changes(self) -> list[str]:
        """``config.yaml`` against the settings of now. Raises ConfigError for what a checkpoint depends on."""
        before = self._settings_before()
        now = flatten(to_mapping(self._config))
        changes = {
            key: f"{key} ({before.get(key)} there, {now.get(key)} now)"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and not key.startswith("run.")
        }
        fatal = [change for key, change in changes.items() if _FIXED.fullmatch(key)]
        if fatal:
            raise ConfigError(
                f"{self.path} holds a run with other settings: {', '.join(fatal)}; "
                f"give another run.name or delete that folder"
            )
        return list(changes.values())

    def _settings_before(self) -> dict[str, Any]:
        try:
            return flatten(yaml.safe_load(self._settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{self._settings} can't be read, so it isn't known what the checkpoints beside it are of: "
                f"put back a copy, or give another run.name ({error})"
            ) from error


def _replace(path: Path, text: str) -> None:
    """A reader, also after a crash, finds the old text or the new one. Raises NoRoom."""
    draft = path.with_name(f"{path.name}.partial")
    with needing_room(path.parent):
        disk.delete(draft)
        disk.write_file(draft, text.encode())
        disk.rename(draft, path)
        disk.sync_folder(path.parent)
