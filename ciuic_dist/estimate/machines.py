"""The machines that come with the library, and the user's own, from YAML."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Final

from ciuic_dist.config import ConfigError
from ciuic_dist.memory.budget import BudgetError, parse_size
from ciuic_dist.planning.machine import Machine

PROBE: Final = "probe"
"""Names the machine that the ranks run on."""
_FOLDER: Final = "ciuic_dist.configs"
_Units = dict[str, float]
_FLOPS: Final[_Units] = {"TFLOP/s": 1e12, "GFLOP/s": 1e9}
_BYTES: Final[_Units] = {"GB/s": 1e9, "TB/s": 1e12, "MB/s": 1e6}
_TIMES: Final[_Units] = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_PER_BYTE: Final[_Units] = {"s/GB": 1e-9}
_UNITS: Final = {
    "bf16": _FLOPS,
    "fp32": _FLOPS,
    "launch": _TIMES,
    "latency": _TIMES,
    "update": {"/s": 1.0},
    "moving": _PER_BYTE,
    "showing": _PER_BYTE,
}
"""Of fields that are no bytes a second."""
_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*(\S*)")


def names() -> list[str]:
    """The machines that there are."""
    files = resources.files(_FOLDER).joinpath("machine").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def about(name: str) -> str:
    """What the machine ``name`` is, in a line."""
    return _text(name).partition("\n")[0].removeprefix("# ")


def load(name: str) -> Machine:
    """The machine of that name, or of the YAML file at that path. Raises ConfigError."""
    if name in names():
        return parse(_text(name), name)
    if name.endswith((".yaml", ".yml")):
        try:
            return parse(Path(name).read_text(encoding="utf-8"), Path(name).stem)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"machine={name} can't be read: {getattr(error, 'strerror', error)}") from error
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? There" if near else "there"
    raise ConfigError(f"there is no machine {name}: {hint} are {', '.join(names())}, or name a YAML file of your own")


def parse(text: str, name: str) -> Machine:
    """The machine that ``text`` (YAML) describes. Raises ConfigError naming the field that is wrong."""
    import yaml

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"machine {name} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"machine {name} must be fields and values, such as those of h100.yaml")
    kinds = typing.get_type_hints(Machine)
    for key in tree:
        if key not in kinds or key == "name":
            known = ", ".join(kind for kind in kinds if kind != "name")
            raise ConfigError(f"machine {name} has no field {key}: there are {known}")
    values = {key: _value(kinds[key], key, value, name) for key, value in tree.items()}
    for field in dataclasses.fields(Machine):
        if field.default is dataclasses.MISSING and field.name not in (*values, "name"):
            raise ConfigError(f"machine {name} lacks {field.name}")
    machine = Machine(name=name, **values)
    _check(machine)
    return machine


def text_of(machine: Machine) -> str:
    """YAML that ``parse`` makes ``machine`` of, in bytes, seconds and what there is of them a second."""
    values = {field.name: (getattr(machine, field.name), field.default) for field in dataclasses.fields(machine)}
    del values["name"]
    return "\n".join(f"{name}: {str(value).lower()}" for name, (value, default) in values.items() if value != default)


def _value(kind: Any, key: str, value: Any, name: str) -> Any:
    units = _UNITS.get(key, _BYTES)
    if kind is bool or (kind is int and isinstance(value, int)):
        if isinstance(value, bool) == (kind is bool):
            return value
    elif kind is int and isinstance(value, str):
        try:
            return parse_size(value, f"{name}: {key}")
        except BudgetError as error:
            raise ConfigError(str(error)) from error
    elif kind is float and isinstance(value, str):
        match = _NUMBER.fullmatch(value.strip())
        unit = (units | {"": 1.0}).get(match[2]) if match else None  # YAML takes 5e9 for text
        if match and unit is not None:
            return float(match[1]) * unit
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    example = {bool: "true", int: "80 GiB"}.get(kind, f"4 {next(iter(units))}")
    raise ConfigError(f"machine {name}: {key}: {value!r} is neither a number nor one with its unit, such as {example}")


def _check(machine: Machine) -> None:
    """What can't be. Raises ConfigError."""
    for field in ("nodes", "devices", "memory", "bf16", "fp32", "bandwidth"):
        if getattr(machine, field) <= 0:
            raise ConfigError(f"machine {machine.name}: {field} must be above zero")
    needed = {
        "peers": machine.devices > 1 and not machine.maps(machine.world),
        "network": machine.nodes > 1,
        "up": bool(machine.host),
        "down": bool(machine.host),
        "read": bool(machine.nvme),
        "write": bool(machine.nvme),
    }
    for field, wanted in needed.items():
        if wanted and getattr(machine, field) <= 0:
            raise ConfigError(f"machine {machine.name} lacks {field}")


def _text(name: str) -> str:
    return resources.files(_FOLDER).joinpath("machine", f"{name}.yaml").read_text(encoding="utf-8")
