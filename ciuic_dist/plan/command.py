"""What the command line of ``python -m ciuic_dist.plan`` asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ciuic_dist.compose import compose
from ciuic_dist.config import Config, ConfigError
from ciuic_dist.estimate import machines
from ciuic_dist.estimate.job import Planned, check_length, plan_here, plan_on
from ciuic_dist.estimate.machines import PROBE
from ciuic_dist.estimate.planner import NothingFits
from ciuic_dist.models.build import build, longest_sequence
from ciuic_dist.planning.machine import Machine

_SEQUENCES = 8
"""Of each device, where nothing is said."""
_LENGTH = 4096
"""Tokens, where nothing is said and the model has positions for as many."""


@dataclass(frozen=True, slots=True)
class Command:
    """The settings, and which of them were given."""

    machine: Machine | None
    """None: this one."""
    config: Config | None
    """None: no model is given, the machine itself is asked for."""
    given: frozenset[str]
    json: bool
    picture: str | None


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
    config = None if name == PROBE and not rest and picture is None else compose(rest)
    return Command(machine, config, given, "--json" in arguments, picture)


def _check_picture(path: Path) -> None:
    """Raises ConfigError where no picture can be written."""
    if path.suffix != ".png":
        raise ConfigError(f"--picture {path}: it will be a PNG, so name it {path.stem}.png")
    if not path.parent.is_dir():
        raise ConfigError(f"--picture {path}: there is no folder {path.parent}")


def planned(config: Config, command: Command) -> Planned:
    """Raises ConfigError where the settings can't be, BudgetError where nothing fits.

    Collective where the machine is this one: all ranks measure it.
    """
    machine = command.machine
    if machine is not None:
        config = _suited(config, command.given, machine)
        check_length(config)
    model = build(config.model, vocab_size=None, seed=config.train.seed)
    return plan_here(config, model) if machine is None else plan_on(machine, config, model)


def refusal(error: Exception) -> str:
    """``error`` as JSON: its words, and where nothing fits, the numbers of its `Shortage`."""
    shortage = error.shortage if isinstance(error, NothingFits) else None
    return json.dumps({"error": str(error)} | (asdict(shortage) if shortage else {}), indent=1)


def _suited(config: Config, given: frozenset[str], machine: Machine) -> Config:
    """What isn't said, as it suits a machine that isn't here. Raises ConfigError."""
    train, data = config.train, config.data
    if "data.sequence_length" not in given:
        data = replace(data, sequence_length=min(_LENGTH, longest_sequence(config.model) or _LENGTH))
    if "train.precision" not in given and not machine.shared:
        train = replace(train, precision="bf16")
    if "train.global_batch" not in given:
        train = replace(train, global_batch=_SEQUENCES * machine.world)
    return replace(config, train=train, data=data)


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
