"""The checkpoints of a run: one in the making at most, the older ones deleted when it is durable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ciuic_dist.checkpoint.saving import Saving
from ciuic_dist.comm.groups import rank
from ciuic_dist.config import Config, to_mapping
from ciuic_dist.engines.base import Engine
from ciuic_dist.loop.folder import RunFolder


class Checkpoints:
    """Every rank has one and calls the same."""

    def __init__(self, engine: Engine, folder: RunFolder, config: Config) -> None:
        self._engine = engine
        self._folder = folder
        self._config = config
        self._saving: Saving | None = None
        self._seconds: float | None = None

    def save(self, step: int) -> None:
        """Begin the checkpoint after ``step`` steps; one that is in the making is waited for first."""
        self.settle()
        with self._counting():
            self._saving = self._engine.save(self._folder.checkpoint(step), self._extra(step))
        if self._saving is None:
            self._prune()

    @property
    def are_done(self) -> bool:
        """Whether ``settle`` has something to do and would not wait for this rank."""
        return self._saving is not None and self._saving.done

    def settle(self) -> None:
        """Wait until what is in the making is durable, and delete what is older than to be kept."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.wait()
            self._seconds = (self._seconds or 0.0) + saving.stall_seconds
            self._prune()

    def take_seconds(self) -> float | None:
        """That training has stood still for checkpoints since this was last asked; None where there was none."""
        seconds, self._seconds = self._seconds, None
        return seconds

    def _prune(self) -> None:
        if rank() == 0:
            self._folder.prune()

    def _extra(self, step: int) -> dict[str, object]:
        """What a run needs besides model and optimizer: all that is random follows from the seed and the samples."""
        return {
            "step": step,
            "samples": step * self._config.train.global_batch,
            "seed": self._config.train.seed,
            "config": to_mapping(self._config),
            "plan": self._folder.read_plan(),
        }

    @contextmanager
    def _counting(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds = (self._seconds or 0.0) + time.monotonic() - began
