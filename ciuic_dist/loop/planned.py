"""A run that follows a plan, and how the plan's prediction came out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

from ciuic_dist.config import Config, ConfigError
from ciuic_dist.monitor import metrics
from ciuic_dist.planning.plan import Plan

_SETTLING = 3
"""Steps that aren't compared: memory is divided after the second."""


def read_plan(config: Config, world: int) -> Plan | None:
    """The plan that ``run.plan`` names, None where it names none.

    Raises ConfigError where it can't be read, or is for another job or number of ranks.
    """
    if config.run.plan is None:
        return None
    path = Path(config.run.plan)
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"run.plan={path} can't be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        message = f"run.plan={path} is no plan of this version: make one with python -m ciuic_dist.plan --json"
        raise ConfigError(message) from error
    train, asked = config.train, plan.training
    for key, planned, here in (
        ("the number of ranks", plan.machine.world, world),
        ("train.global_batch", asked.sequences, train.global_batch),
        ("data.sequence_length", asked.length, config.data.sequence_length),
        ("train.precision", asked.precision, train.precision),
        ("optimizer.state_dtype", asked.state_dtype, config.optimizer.state_dtype),
        ("train.clip", "not null" if asked.clips else "null", "not null" if train.clip is not None else "null"),
    ):
        if planned != here:
            raise ConfigError(f"run.plan={path} is for another job: {key} is {planned} there and {here} here")
    return plan


def follow(config: Config, plan: Plan | None) -> Config:
    """The settings with those of the plan in their places."""
    if plan is None:
        return config
    return replace(
        config,
        engine=replace(config.engine, stage=plan.stage),
        train=replace(config.train, micro_batch=plan.micro_batch, activation_checkpointing=plan.recompute),
    )


def compared(plan: Plan, path: Path) -> str | None:
    """What was predicted beside what the metrics at ``path`` say, in a line; None for a run too short to tell."""
    steps = list(metrics.read(path))[_SETTLING:]
    if not steps:
        return None
    seconds = median(plan.training.tokens / step["tokens_per_s"] for step in steps)
    predicted = plan.predicted
    return (
        f"predicted {predicted.seconds:.3f} s a step, measured {seconds:.3f} s "
        f"({predicted.seconds / seconds - 1:+.0%} predicted)"
    )
