"""What the command line of ``python -m ciuic_dist.plan`` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ciuic_dist.compose import compose
from ciuic_dist.config import Config, ConfigError
from ciuic_dist.estimate import machines
from ciuic_dist.estimate.cache import Cache
from ciuic_dist.estimate.calls import Clock
from ciuic_dist.estimate.planner import make_plan
from ciuic_dist.estimate.probe import probe, room
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.memory.budget import Memory
from ciuic_dist.models.build import build, longest_sequence
from ciuic_dist.plan.api import within
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.search import Limits
from ciuic_dist.planning.training import Training

PROBE: Final = "probe"
_SEQUENCES = 8
"""Of each device, where nothing is said."""
_LENGTH = 4096
"""Tokens, where nothing is said and the model has positions for as many."""


@dataclass(frozen=True, slots=True)
class Command:
    """The settings, and which of them were given."""

    machine: Machine | None
    """None: this one."""
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
            _check_picture(Path(picture))
        elif argument.startswith("machine="):
            name = argument.removeprefix("machine=")
        elif argument != "--json":
            rest.append(argument)
    if name is None:
        known = ", ".join((PROBE, *machines.names()))
        raise ConfigError(f"no machine: add machine=<name>; there are {known}, or name a YAML file")
    machine = None if name == PROBE else machines.load(name)
    given = frozenset(argument.lstrip("+").partition("=")[0] for argument in rest)
    return Command(machine, compose(rest), given, "--json" in arguments, picture)


def _check_picture(path: Path) -> None:
    """Raises ConfigError where no picture can be written."""
    if path.suffix != ".png":
        raise ConfigError(f"--picture {path}: it will be a PNG, so name it {path.stem}.png")
    if not path.parent.is_dir():
        raise ConfigError(f"--picture {path}: there is no folder {path.parent}")


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the micro-batch that it is made of."""

    plan: Plan
    profile: Profile


def planned(command: Command) -> Planned:
    """Raises ConfigError where the settings can't be, BudgetError where nothing fits.

    Collective where the machine is this one: all ranks measure it.
    """
    config = command.config
    length = _length(command)
    cache = Cache() if command.machine is None else None
    whole = command.machine or _here(cache, config)
    training = _training(command, whole, length)
    machine = _allowed(whole, config)
    limits = _limits(command, machine, training)
    model = build(config.model, vocab_size=None, seed=config.train.seed)
    clock = Clock(cache.operators) if cache is not None and machine.shared else None
    profile_of = profiles(
        model,
        causal_batch(training.length),
        precision="bf16" if training.precision == "bf16" else None,
        fused_attention=not machine.shared,
        most=training.sequences // machine.world,
        clock=clock,
    )
    if cache is not None:
        cache.keep(whole, clock.known if clock else {})
    plan = make_plan(config.model_name, profile_of, machine, training, limits)
    return Planned(plan, profile_of(plan.micro_batch))


def _here(cache: Cache | None, config: Config) -> Machine:
    """The machine that the ranks run on, as it was probed before or now."""
    known = None if cache is None else cache.machine
    budgets = Memory(nvme=config.memory.nvme).resolve(1)
    wanted = budgets.nvme or 0
    if known is not None and (known.read or not wanted):
        return replace(known, nvme=wanted, **room())
    return probe(budgets.folder, wanted)


def _length(command: Command) -> int:
    """Tokens of a sequence. Raises ConfigError where the model has no positions for as many."""
    config, most = command.config, longest_sequence(command.config.model)
    if command.machine is not None and not command.chosen("data.sequence_length"):
        return min(_LENGTH, most or _LENGTH)
    length = config.data.sequence_length
    if length < 1:
        raise ConfigError(f"data.sequence_length={length} must be at least 1")
    if most is not None and length > most:
        raise ConfigError(f"data.sequence_length={length}: {config.model_name} has positions for {most} tokens at most")
    return length


def _training(command: Command, machine: Machine, length: int) -> Training:
    """What isn't said is as ``train`` has it, or what suits a machine that isn't here."""
    config, here = command.config, command.machine is None

    def said(key: str) -> bool:
        return here or command.chosen(key)

    train = config.train
    precision = train.precision if said("train.precision") or machine.shared else "bf16"
    sequences = train.global_batch if said("train.global_batch") else _SEQUENCES * machine.world
    if sequences % machine.world:
        raise ConfigError(f"train.global_batch={sequences} can't be divided among {machine.world} ranks")
    return Training(sequences, length, precision, config.optimizer.state_dtype, train.clip is not None)


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


def _allowed(machine: Machine, config: Config) -> Machine:
    """With no more of each tier than ``memory`` allows, where it says so."""
    memory = config.memory
    if (memory.device, memory.host, memory.nvme) == (None, None, None):
        return machine
    return within(machine, Memory(memory.device, memory.host, memory.nvme))


def help_text(about: str) -> str:
    """How to ask, and for which machines."""
    lines = [about.strip(), "", "machine=<name>, one of"]
    lines += [f"  {name:<14}{machines.about(name)}" for name in machines.names()]
    lines += [
        f"  {PROBE:<14}this one, measured: by torchrun with as many ranks as will train",
        "or the path of a YAML file such as these",
        "",
        "python -m ciuic_dist.train --help has the other settings.",
    ]
    return "\n".join(lines)
