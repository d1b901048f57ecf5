"""Which plan a run follows: one that it is given, the one it had before a stop, or one made now."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ciuic_dist.comm.groups import rank, world_size
from ciuic_dist.comm.together import on_rank_zero
from ciuic_dist.config import AUTO, Config, ConfigError
from ciuic_dist.estimate.calls import Untraceable
from ciuic_dist.estimate.job import plan_here
from ciuic_dist.estimate.planner import NothingFits
from ciuic_dist.planning.plan import Plan

_DECISIVE = (
    "memory.",
    "engine.stage",
    "engine.group",
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.compile",
)
"""How keys begin that a plan is made under, beside those it can be compared with."""


def named_plan(config: Config) -> Plan | None:
    """The plan whose file ``run.plan`` names; None where it names none.

    Raises ConfigError where it can't be read or followed, or is for another job or number of ranks.
    """
    if config.run.plan in (None, AUTO):
        return None
    path = Path(str(config.run.plan))
    if config.engine.name != "paged":
        raise ConfigError(f"engine={config.engine.name} follows no plans: leave run.plan out, or use engine=paged")
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"run.plan={path} can't be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        message = f"run.plan={path} is no plan of this version: make one with python -m ciuic_dist.plan --json"
        raise ConfigError(message) from error
    for key, planned, here in _differences(plan, config):
        raise ConfigError(f"run.plan={path} is for another job: {key} is {planned} there and {here} here")
    return plan


def kept_plan(path: Path, config: Config, changes: Sequence[str]) -> Plan | None:
    """The plan that this run had before; None without one, or where a plan depends on what isn't the same any more.

    ``changes``: the settings that aren't what they were, each with its key in front.
    """

    def read() -> Plan | None:
        try:
            return Plan.from_json(path.read_text(encoding="utf-8"))
        except (OSError, KeyError, TypeError, ValueError):
            return None

    plan = on_rank_zero(read)
    told = any(change.startswith(_DECISIVE) for change in changes)
    return None if plan is None or told or any(_differences(plan, config)) else plan


def plans_itself(config: Config) -> bool:
    """Whether the run makes its own plan."""
    return config.run.plan == AUTO and config.engine.name == "paged"


def own_plan(config: Config, model: nn.Module) -> Plan | None:
    """The best plan for these ranks; None for a model that can't be traced, which rank 0 says. Collective.

    Raises ConfigError, and BudgetError for budgets that can't be and where nothing fits.
    """
    try:
        return plan_here(config, model).plan
    except NothingFits as error:
        raise NothingFits(f"{error}. run.plan=null tries it all the same", error.shortage) from error
    except Untraceable as error:
        if rank() == 0:
            words = str(error).partition("\n")[0]
            sys.stderr.write(f"going on without a plan, which can't be made: {words}\n")
        return None


def follow(config: Config, plan: Plan | None) -> Config:
    """The settings with those of the plan in their places."""
    if plan is None:
        return config
    return replace(
        config,
        engine=replace(config.engine, stage=plan.stage, group=plan.group),
        train=replace(config.train, micro_batch=plan.micro_batch, activation_checkpointing=plan.recompute),
    )


def _differences(plan: Plan, config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Keys of settings that aren't what the plan is for, with both values; what isn't set differs from nothing."""
    train, asked = config.train, plan.training
    for key, planned, here in (
        ("the number of ranks", plan.machine.world, world_size()),
        ("train.global_batch", asked.sequences, train.global_batch),
        ("data.sequence_length", asked.length, config.data.sequence_length),
        ("train.precision", asked.precision, train.precision),
        ("optimizer.state_dtype", asked.state_dtype, config.optimizer.state_dtype),
        ("train.clip", "not null" if asked.clips else "null", "not null" if train.clip is not None else "null"),
        ("engine.stage", plan.stage, config.engine.stage),
        ("engine.group", plan.group or world_size(), config.engine.group),
        ("train.micro_batch", plan.micro_batch, train.micro_batch),
        ("train.activation_checkpointing", plan.recompute, train.activation_checkpointing),
    ):
        if here not in (None, planned):
            yield key, planned, here
