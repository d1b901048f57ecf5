"""What the command line of ``python -m ciuic_dist.plan`` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ciuic_dist.compose import compose
from ciuic_dist.config import Config, ConfigError
from ciuic_dist.estimate import machines
from ciuic_dist.estimate.planner import make_plan
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.memory.budget import Memory
from ciuic_dist.models.build import build
from ciuic_dist.plan.api import within
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.search import Limits
from ciuic_dist.planning.training import Training

_SEQUENCES = 8
"""Of each device, where nothing is said."""
_LENGTH = 4096
"""Tokens, where nothing is said."""


@dataclass(frozen=True, slots=True)
class Command:
    """The settings, and which of them were given."""

    machine: Machine
    config: Config
    given: frozenset[str]
    json: bool
    picture: str | None

    def chosen(self, key: str) -> bool:
        """Whether the command line says it."""
        return key in self.given


def parse(arguments: Sequence[str]) -> Command:
    """Raises ConfigError for what isn't there."""
    rest, picture, name = [], None, None
    left = iter(arguments)
    for argument in left:
        if argument == "--picture":
            picture = next(left, None)
            if picture is None:
                raise ConfigError("--picture needs a file: --picture step.png")
        elif argument.startswith("machine="):
            name = argument.removeprefix("machine=")
        elif argument != "--json":
            rest.append(argument)
    if name is None:
        raise ConfigError(f"no machine: add machine=<name>; there are {', '.join(machines.names())}, or a YAML file")
    machine = machines.load(name)
    given = frozenset(argument.lstrip("+").partition("=")[0] for argument in rest)
    return Command(machine, compose(rest), given, "--json" in arguments, picture)


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the micro-batch that it is made of."""

    plan: Plan
    profile: Profile


def planned(command: Command) -> Planned:
    """Raises ConfigError where the settings can't be, BudgetError where nothing fits."""
    config = command.config
    training = _training(command)
    machine = _machine(command)
    limits = _limits(command, machine, training)
    model = build(config.model, vocab_size=None, seed=config.train.seed)
    precision = "bf16" if training.precision == "bf16" else None
    batch = causal_batch(training.length)
    profile_of = profiles(model, batch, precision=precision, fused_attention=not machine.shared)
    plan = make_plan(config.model_name, profile_of, machine, training, limits)
    return Planned(plan, profile_of(plan.micro_batch))


def _training(command: Command) -> Training:
    """What isn't said is what suits the machine."""
    train, machine = command.config.train, command.machine
    precision = train.precision if command.chosen("train.precision") or machine.shared else "bf16"
    sequences = train.global_batch if command.chosen("train.global_batch") else _SEQUENCES * machine.world
    length = command.config.data.sequence_length if command.chosen("data.sequence_length") else _LENGTH
    if sequences % machine.world:
        raise ConfigError(f"train.global_batch={sequences} can't be divided among {machine.world} ranks")
    clips = train.clip is not None
    return Training(sequences, length, precision, command.config.optimizer.state_dtype, clips)


def _limits(command: Command, machine: Machine, training: Training) -> Limits:
    """Raises ConfigError where they leave no choice."""
    config = command.config
    way, micro_batch, each = config.memory.activations, config.train.micro_batch, training.sequences // machine.world
    if micro_batch is not None and each % micro_batch:
        raise ConfigError(f"train.micro_batch={micro_batch} doesn't divide the {each} sequences of each rank")
    if way in ("offload", "recompute"):
        if not (machine.host or machine.nvme):
            raise ConfigError(f"memory.activations={way} needs host memory or NVMe, of which {machine.name} gives none")
        if command.chosen("train.activation_checkpointing") and config.train.activation_checkpointing:
            raise ConfigError(f"memory.activations={way} and train.activation_checkpointing=true exclude each other")
    return Limits(
        stage=config.engine.stage if command.chosen("engine.stage") else None,
        micro_batch=micro_batch,
        way=None if way == "auto" else Way(way),
        recompute=config.train.activation_checkpointing if command.chosen("train.activation_checkpointing") else None,
    )


def _machine(command: Command) -> Machine:
    """With no more of each tier than ``memory`` allows, where it says so."""
    memory = command.config.memory
    if (memory.device, memory.host, memory.nvme) == (None, None, None):
        return command.machine
    return within(command.machine, Memory(memory.device, memory.host, memory.nvme))


def help_text(about: str) -> str:
    """How to ask, and for which machines."""
    lines = [about.strip(), "", "machine=<name>, one of"]
    lines += [f"  {name:<14}{machines.about(name)}" for name in machines.names()]
    lines += [
        "or the path of a YAML file such as these",
        "",
        "python -m ciuic_dist.train --help has the other settings.",
    ]
    return "\n".join(lines)
