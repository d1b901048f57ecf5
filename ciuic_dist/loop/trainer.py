"""The training loop: accumulate, clip, step, validate, record, save."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from typing import Self

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR

from ciuic_dist.checkpoint.errors import needing_room
from ciuic_dist.comm.groups import device, gather_objects, host_identity, rank, world_size
from ciuic_dist.config import Config
from ciuic_dist.data import Batches, Corpus
from ciuic_dist.engines.base import Batch, Engine
from ciuic_dist.loop.checkpoints import Checkpoints
from ciuic_dist.loop.folder import RunFolder
from ciuic_dist.loop.schedule import lr_factor, micro_batch_of, sample_seed
from ciuic_dist.loop.signals import StopRequest
from ciuic_dist.loop.watch import Watch, expected
from ciuic_dist.monitor.metrics import MetricsFile, StepMetrics
from ciuic_dist.monitor.progress import Progress
from ciuic_dist.monitor.spilling import Spilling


class Trainer:
    """Takes one engine through its steps, from ``first_step`` on. Every rank has one and calls the same."""

    def __init__(
        self, config: Config, engine: Engine, corpus: Corpus, folder: RunFolder, first_step: int, watch: Watch | None
    ) -> None:
        self._train = config.train
        self._engine = engine
        self._corpus = corpus
        self._folder = folder
        self._first_step = first_step
        self._watch = watch
        self._spilling: Spilling | None = None
        self._hosts = len(set(gather_objects(host_identity())))
        self._checkpoints = Checkpoints(engine, folder, config)
        self._micro_batch = micro_batch_of(config.train, world_size())
        # What a checkpoint brought is set anew: the settings of this start count, and the rest follows from the step.
        for group in engine.optimizer.param_groups:
            group.update(asdict(config.optimizer), initial_lr=config.optimizer.lr)
        self._scheduler = LambdaLR(
            engine.optimizer, lambda step: lr_factor(step, config.train), last_epoch=first_step - 1
        )

    def run(self, stop: StopRequest) -> int:
        """Train until the last step, until a rank is asked to stop or the watch knows better.

        Returns the steps done, all saved.
        """
        with _Record(self._folder, self._train.steps, self._first_step, self._watch) as record:
            for done in range(self._first_step + 1, self._train.steps + 1):
                last = done == self._train.steps
                metrics, stopping = self._step(done, stop, validate=last or done % self._train.validate_every == 0)
                record.add(metrics)
                stopping = stopping or (not last and self._judged(metrics))
                if last or stopping or done % self._train.checkpoint_every == 0:
                    self._checkpoints.save(done)
                if stopping:
                    break
            self._checkpoints.settle()
        return done

    def _step(self, number: int, stop: StopRequest, *, validate: bool) -> tuple[StepMetrics, bool]:
        """Optimizer step ``number`` (from 1); also whether any rank is asked to stop."""
        began = time.monotonic()
        start = (number - 1) * self._train.global_batch
        batches = self._micro_batches(self._corpus.train, start)
        loss = torch.zeros((), device=device())
        for index, batch in enumerate(batches):
            first = start + (index * world_size() + rank()) * self._micro_batch
            torch.manual_seed(sample_seed(self._train.seed, first))
            with self._looking(index):
                loss += self._engine.forward_backward(batch, accumulation=len(batches), last=index == len(batches) - 1)
        lr = self._engine.optimizer.param_groups[0]["lr"]
        norm = self._engine.step(self._train.clip)
        self._scheduler.step()
        moved = self._moved()
        mean, stops, saved, written = _sums(
            loss.item() / len(batches) / world_size(),
            float(stop.made),
            float(self._checkpoints.are_done),
            0.0 if moved is None else float(moved.nvme_bytes),
        )
        if saved == world_size():  # the same step on every rank
            self._checkpoints.settle()
        tokens = self._train.global_batch * batches[0]["input_ids"].shape[1]
        seconds = time.monotonic() - began
        metrics = StepMetrics(
            step=number,
            loss=mean,
            tokens_per_s=tokens / seconds,
            lr=lr,
            grad_norm=norm,
            memory=self._engine.status(),
            seconds=seconds,
            samples=(start, start + self._train.global_batch),
            checkpoint_seconds=self._checkpoints.take_seconds(),
            spilling=moved,
            validation_loss=self._validate() if validate else None,
            nvme_bytes=written / self._hosts,
        )
        return metrics, stops > 0

    def _looking(self, index: int) -> AbstractContextManager[object]:
        return nullcontext() if index or self._watch is None else self._watch.looking()

    def _judged(self, metrics: StepMetrics) -> bool:
        """Whether there is a better plan than that of the run."""
        if self._watch is None:
            return False
        words = self._watch.judge(metrics.seconds)
        if words and rank() == 0:
            sys.stdout.write(f"{words}\n")
            sys.stdout.flush()
        return self._watch.better is not None

    def _moved(self) -> Spilling | None:
        """What has spilled since this was last asked."""
        before, self._spilling = self._spilling, self._engine.spilling()
        return None if self._spilling is None else self._spilling.since(before or Spilling())

    def _validate(self) -> float:
        """Mean loss over the same held-out samples whatever the number of ranks."""
        samples = min(self._train.validation_samples, len(self._corpus.validation))
        losses = [
            self._engine.evaluate(batch).item()
            for start in range(0, samples, self._train.global_batch)
            for batch in self._micro_batches(self._corpus.validation, start)
        ]
        return _sums(sum(losses) / len(losses) / world_size())[0]

    def _micro_batches(self, samples: Batches, start: int) -> list[Batch]:
        batches = samples.micro_batches(
            start, global_batch=self._train.global_batch, micro_batch=self._micro_batch, rank=rank(), world=world_size()
        )
        return [{name: tensor.to(device()) for name, tensor in batch.items()} for batch in batches]


class _Record:
    """Rank 0's metrics file and display; nothing elsewhere."""

    def __init__(self, folder: RunFolder, steps: int, first_step: int, watch: Watch | None) -> None:
        self._folder = folder
        self._watch = watch
        self._open = ExitStack()
        self._file: MetricsFile | None = None
        if rank() == 0:
            with needing_room(folder.path):
                self._file = self._open.enter_context(MetricsFile(folder.metrics, resumed_step=first_step))
            self._progress = self._open.enter_context(Progress(steps, first_step=first_step))

    def add(self, metrics: StepMetrics) -> None:
        if self._file is not None:
            with needing_room(self._folder.path):
                self._file.write(metrics)
            self._progress.update(metrics, None if self._watch is None else expected(self._watch.plan))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def _sums(*values: float) -> list[float]:
    """Each value summed over the ranks."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    sums: list[float] = tensor.tolist()
    return sums
