"""The plan of a run, from its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ciuic_dist.config import Config, ConfigError, MemoryConfig
from ciuic_dist.estimate.cache import Cache
from ciuic_dist.estimate.calls import Clock, Seen
from ciuic_dist.estimate.here import Here
from ciuic_dist.estimate.planner import make_plan
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.memory.budget import Memory, parse_size
from ciuic_dist.models.build import longest_sequence
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.choices import Limits
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.training import Choice, Training


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the micro-batch that it is made of."""

    plan: Plan
    profile: Profile


def plan_here(config: Config, model: nn.Module) -> Planned:
    """The best way to run ``config`` on the ranks there are. Collective: they measure what isn't known of them.

    ``model``: that of ``config``, on meta. Raises ConfigError where the settings can't be, BudgetError where nothing
    fits, Untraceable.
    """
    check_length(config)
    here = Here(_memory(config.memory))
    made = plan_on(here.machine, config, model, here.clock)
    here.remember()
    return made


def plan_again(config: Config, model: nn.Module, current: Plan, seen: Seen) -> Plan:
    """The best plan now that it was ``seen`` how long operators take; the ``current`` one where none is much better.

    On the machine as it was then: what is taken of it by now, the run itself has. Collective. Raises as `plan_here`.
    """
    clock = Clock(Cache().operators, seen)
    return plan_on(current.machine, config, model, clock, current.choice).plan


def plan_on(
    machine: Machine, config: Config, model: nn.Module, clock: Clock | None = None, current: Choice | None = None
) -> Planned:
    """The same for any machine; ``clock`` knows how long operators take on it. Raises as `plan_here` does."""
    train = config.train
    if train.global_batch % machine.world:
        raise ConfigError(f"train.global_batch={train.global_batch} can't be divided among {machine.world} ranks")
    allowed = within(machine, _memory(config.memory))
    training = Training(
        train.global_batch,
        config.data.sequence_length,
        train.precision,
        config.optimizer.state_dtype,
        clips=train.clip is not None,
    )
    limits = _limits(config, model, allowed)
    profile_of = profiles(
        model,
        causal_batch(training.length),
        precision="bf16" if training.precision == "bf16" else None,
        fused_attention=clock is None and not machine.shared,
        most=training.sequences // machine.world,
        clock=clock,
    )
    plan = make_plan(config.model_name, profile_of, allowed, training, limits, current)
    return Planned(plan, profile_of(plan.micro_batch))


def check_length(config: Config) -> None:
    """Raises ConfigError where the model has no positions for sequences that long."""
    length, most = config.data.sequence_length, longest_sequence(config.model)
    if length < 1:
        raise ConfigError(f"data.sequence_length={length} must be at least 1")
    if most is not None and length > most:
        raise ConfigError(f"data.sequence_length={length}: {config.model_name} has positions for {most} tokens at most")


def within(machine: Machine, memory: Memory) -> Machine:
    """The machine with no more than ``memory`` allows; its folder need not be here. Raises BudgetError for no size."""
    if (memory.device, memory.host, memory.nvme) == (None, None, None):
        return machine
    nvme = None if memory.nvme is None else str(memory.nvme).rpartition(":")[2]
    given = {"memory": ("device", memory.device), "host": ("host", memory.host), "nvme": ("nvme", nvme)}
    if machine.shared:  # the host's memory is the devices'
        machine = replace(machine, host=machine.host or machine.memory * machine.devices)
        given["host"] = ("host", memory.host or 0)
    least = {
        field: min(parse_size(size, f"memory.{name}"), getattr(machine, field))
        for field, (name, size) in given.items()
        if size is not None
    }
    return replace(machine, **least)


def _memory(config: MemoryConfig) -> Memory:
    return Memory(config.device, config.host, config.nvme)


def _limits(config: Config, model: nn.Module, machine: Machine) -> Limits:
    """Raises ConfigError where they leave no choice."""
    train, way = config.train, config.memory.activations
    each = train.global_batch // machine.world
    if train.micro_batch is not None and each % train.micro_batch:
        raise ConfigError(f"train.micro_batch={train.micro_batch} doesn't divide the {each} sequences of each rank")
    if way in ("offload", "recompute"):
        if not (machine.host or machine.nvme):
            raise ConfigError(f"memory.activations={way} needs host memory or NVMe, of which {machine.name} gives none")
        if train.activation_checkpointing:
            raise ConfigError(f"memory.activations={way} and train.activation_checkpointing=true exclude each other")
    config.engine.check_group(machine.world)
    able = getattr(model, "supports_gradient_checkpointing", False)
    if train.activation_checkpointing and not able:
        name = type(model).__name__
        raise ConfigError(f"{name} cannot recompute its activations: set train.activation_checkpointing=false")
    return Limits(
        stage=config.engine.stage,
        group=config.engine.group,
        micro_batch=train.micro_batch,
        way=None if way == "auto" else Way(way),
        recompute=train.activation_checkpointing if able else False,
    )
