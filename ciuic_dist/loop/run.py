"""One run from its settings to its last checkpoint; also the same run again after a stop or a crash."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn

from ciuic_dist import data
from ciuic_dist.checkpoint.errors import CorruptCheckpoint
from ciuic_dist.comm import groups
from ciuic_dist.comm.agreement import agree
from ciuic_dist.comm.together import on_rank_zero, together
from ciuic_dist.config import Config, to_mapping
from ciuic_dist.data.sources import describe
from ciuic_dist.engines.base import Engine
from ciuic_dist.engines.build import build as build_engine
from ciuic_dist.estimate.calls import Seen
from ciuic_dist.estimate.compression import pays
from ciuic_dist.estimate.job import plan_again
from ciuic_dist.hub import commits
from ciuic_dist.loop.folder import RunFolder
from ciuic_dist.loop.peers import PeerWatch
from ciuic_dist.loop.planned import follow, kept_plan, named_plan, own_plan, plans_itself
from ciuic_dist.loop.precision import warn_of_slow_bf16
from ciuic_dist.loop.schedule import micro_batch_of
from ciuic_dist.loop.signals import STOPPED, StopRequest
from ciuic_dist.loop.trainer import Trainer
from ciuic_dist.loop.watch import JUDGED, Watch, comparison
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.models.build import build as build_model
from ciuic_dist.monitor.plots import plot_losses
from ciuic_dist.planning.plan import Plan

FINISHED: Final = 0


def run(config: Config) -> int:
    """Train as ``config`` says, from the newest checkpoint there is; returns the exit code.

    Raises ConfigError or DataError for what the user must change, Disagreement where the ranks were
    started differently, PeerLost naming a rank that ended.
    """
    _use_cores()
    groups.init(config.engine.timeout)
    try:
        plan = named_plan(config)
        agree("setup", _description(config))
        micro_batch_of(follow(config, plan).train, groups.world_size())
        with PeerWatch(), StopRequest() as stop:
            with together():
                corpus = data.load(config.data, seed=config.train.seed)
            folder = RunFolder(config)
            try:
                return _Run(config, corpus, folder, stop).run(plan)
            finally:
                folder.drop_if_unused()
                folder.release()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Run:
    """One start of a run; where its first steps show a better plan, another engine goes on from a checkpoint."""

    def __init__(self, config: Config, corpus: data.Corpus, folder: RunFolder, stop: StopRequest) -> None:
        self._config = config
        self._corpus = corpus
        self._folder = folder
        self._stop = stop
        self._compress = bool(config.train.compress_checkpoints)

    def run(self, plan: Plan | None) -> int:
        """Follow ``plan``, the one the run had or a new one; returns the exit code."""
        folder, steps = self._folder, self._config.train.steps
        model = self._model()  # before the folder is touched: its settings may be wrong
        first, changes = on_rank_zero(folder.claim)
        if changes:
            _say(f"settings that are not what they were in {folder.path}: {', '.join(changes)}")
        if first >= steps:
            _say(
                f"{folder.path} is finished: {first} steps. More train.steps continue it, another run.name starts anew"
            )
            return FINISHED
        if self._config.train.compress_checkpoints is None:
            self._compress = pays(folder.path)
        warn_of_slow_bf16(self._config.train)
        itself = plans_itself(self._config)
        if itself:
            plan = kept_plan(folder.plan, self._config, changes) if first else None
            plan = plan or own_plan(self._config, model)
        done = self._train(plan, first, may_change=itself and first < JUDGED)
        finished = done == steps
        stopped = f"stopped by a signal after step {done} of {steps}; the same command goes on from there"
        _say(f"finished: {folder.path}" if finished else stopped)
        # On all ranks, since torchrun ends the others when one has left with another code than 0.
        on_rank_zero(lambda: plot_losses(folder.metrics, folder.path / "loss.png"))
        return FINISHED if finished else STOPPED

    def _train(self, plan: Plan | None, first: int, *, may_change: bool) -> int:
        """From step ``first`` on; the steps done. A better plan goes on from a checkpoint, the old one if it fails."""
        done, better = self._follow(plan, first, may_change=may_change)
        if better is None:
            return done
        gc.collect()  # the engine before has references in circles
        try:
            return self._follow(better, done, may_change=False)[0]
        except BudgetError as error:
            _say(f"going back to the plan before: {error}")
        gc.collect()
        return self._follow(plan, on_rank_zero(self._folder.newest), may_change=False)[0]

    def _follow(self, plan: Plan | None, first: int, *, may_change: bool) -> tuple[int, Plan | None]:
        """With one engine; the steps done, and a plan that is worth a change."""
        config, folder, model = follow(self._config, plan), self._folder, self._model()
        config = replace(config, train=replace(config.train, compress_checkpoints=self._compress))
        watch = self._watch(plan, may_change=may_change)
        self._keep(plan)
        _say(_header(config, self._corpus, model))
        engine = build_engine(
            config.engine, model, optimizer=config.optimizer, train=config.train, memory=config.memory, plan=plan
        )
        try:
            first = _resume(engine, folder, first)
            done = Trainer(config, engine, self._corpus, folder, first, watch).run(self._stop)
        finally:
            engine.close()
        if watch is None:
            return done, None
        self._keep(watch.plan)
        if groups.rank() == 0:
            _say(comparison(watch, folder.metrics, first))
        return done, watch.better

    def _watch(self, plan: Plan | None, *, may_change: bool) -> Watch | None:
        if plan is None:
            return None
        looks = groups.device().type == "cpu" and not self._config.train.compile

        def replan(current: Plan, seen: Seen) -> Plan:
            return plan_again(self._config, self._model(), current, seen)

        counts = not plan.spills and self._config.memory.device is None
        return Watch(plan, replan if may_change else None, looks=looks, counts=counts)

    def _model(self) -> nn.Module:
        with together():
            model = build_model(self._config.model, vocab_size=self._corpus.vocab_size, seed=self._config.train.seed)
        agree("hub", commits)
        return model

    def _keep(self, plan: Plan | None) -> None:
        if groups.rank() == 0:
            self._folder.keep_plan(None if plan is None else plan.to_json())


def _resume(engine: Engine, folder: RunFolder, newest: int) -> int:
    """Load the newest checkpoint, or if it is corrupt the newest one that verifies, and say so; its step.

    0 where there is none yet. Raises CorruptCheckpoint where none verifies.
    """
    corrupt: list[int] = []
    for step in sorted(on_rank_zero(folder.steps), reverse=True) if newest else ():
        _say(f"resuming {folder.path} after step {step}")
        try:
            engine.load(folder.checkpoint(step))
        except CorruptCheckpoint as error:
            _say(f"that checkpoint is corrupt: {error}")
            corrupt.append(step)
            continue
        for other in corrupt:
            aside = on_rank_zero(partial(folder.put_aside, other))
            _say(f"the corrupt checkpoint of step {other} is now {aside}, and counts no more")
        return step
    if corrupt:
        raise CorruptCheckpoint(f"no checkpoint of {folder.path} verifies: put back a copy, or give another run.name")
    return 0


def _header(config: Config, corpus: data.Corpus, model: nn.Module) -> str:
    """What is about to be trained, where and on what."""
    world, engine, length = groups.world_size(), config.engine, config.data.sequence_length
    grouped = "" if engine.group in (None, world) else f" in groups of {engine.group}"
    return (
        f"{config.model_name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters, "
        f"{world} rank{'s' if world > 1 else ''}, engine {engine.name} at stage {engine.zero_stage}{grouped}, "
        f"{len(corpus.train) * length:,} tokens of {describe(config.data.path)} and "
        f"{len(corpus.validation) * length:,} to validate"
    )


def _use_cores() -> None:
    """Share this host's cores among its ranks, unless the user (or torchrun: 1 each) has said how."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def _description(config: Config) -> dict[str, Any]:
    """All that has to be the same on every rank."""
    root = Path(__file__).parents[1]
    sources = {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in sorted(root.rglob("*.py"))
    }
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {"settings": to_mapping(config), "packages": packages, "source": sources}


def _say(text: str) -> None:
    if groups.rank() == 0:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
