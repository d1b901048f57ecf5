"""The settings of a run: one frozen dataclass a part, made from a mapping with strict keys.

Needs no torch. ``configs/train.yaml`` holds the same defaults with a comment on every field.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AUTO = "auto"
"""``run.plan``: make one."""


class ConfigError(ValueError):
    """A setting that cannot be; the message names it and what to write instead."""


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Where a run leaves its files: ``folder/name``; None names it after the model and the engine.

    ``plan``: "auto" for one made before the first step, the path of one to follow, or None.
    """

    name: str | None = None
    folder: str = "runs"
    plan: str | None = AUTO


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A Hugging Face architecture: a named size of a family, or a hub id or folder."""

    family: str
    size: str | None = "tiny"
    path: str | None = None
    model_type: str | None = None
    pretrained: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Text to train on; ``path`` None is the Python standard library's own sources."""

    path: str | None = None
    tokenizer: str = "bytes"
    sequence_length: int = 128
    validation_fraction: float = 0.05
    text_field: str = "text"


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW."""

    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    state_dtype: Literal["fp32", "8bit"] = "fp32"

    def __post_init__(self) -> None:
        _demand(self.lr > 0, "optimizer.lr must be positive")
        _demand(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas must lie in [0, 1)")
        _demand(self.eps > 0, "optimizer.eps must be positive")
        _demand(self.weight_decay >= 0, "optimizer.weight_decay must not be negative")


_COUNTS = ("steps", "global_batch", "validate_every", "validation_samples", "checkpoint_every", "keep_checkpoints")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How long, in what batches, at what precision, and how often to look and to save.

    ``global_batch`` and ``validation_samples`` count sequences; ``micro_batch`` is the sequences of
    one rank in one forward. ``micro_batch`` and ``activation_checkpointing`` None: the plan's, and without a plan the
    whole share of the global batch, and no checkpointing. ``compress_checkpoints`` None: where that pays.
    """

    steps: int = 300
    global_batch: int = 12
    micro_batch: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: float | None = 1.0
    warmup_steps: int = 20
    final_lr_fraction: float = 0.1
    validate_every: int = 100
    validation_samples: int = 96
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    compress_checkpoints: bool | None = None
    activation_checkpointing: bool | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _demand(getattr(self, name) >= 1, f"train.{name} must be at least 1")
        _demand(self.seed >= 0, "train.seed must not be negative")
        _demand(self.micro_batch is None or self.micro_batch >= 1, "train.micro_batch must be at least 1, or null")
        _demand(self.clip is None or self.clip > 0, "train.clip must be positive, or null for none")
        _demand(self.warmup_steps >= 0, "train.warmup_steps must not be negative")
        _demand(0 <= self.final_lr_fraction <= 1, "train.final_lr_fraction must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What spreads the model over the ranks; ``timeout`` is in seconds. ``stage`` None: the plan's.

    ``group``: so many ranks shard among themselves, and each such group has a replica; None: the plan's, or all.
    """

    name: Literal["paged", "fsdp2", "deepspeed"] = "paged"
    stage: int | None = None
    group: int | None = None
    timeout: float = 300.0

    @property
    def zero_stage(self) -> int:
        """``stage``, 3 where nothing has chosen one."""
        return 3 if self.stage is None else self.stage

    def check_group(self, world: int) -> None:
        """Raise ConfigError where so many ranks can't be in such groups."""
        group = self.group
        _demand(group is None or world % group == 0, f"engine.group={group} doesn't divide the {world} ranks")
        _demand(
            group in (None, world) or (group != 1 and self.stage != 0),
            f"engine.group={group} shards nothing at stage {self.stage}: leave it out, or make it larger",
        )

    def __post_init__(self) -> None:
        _demand(self.stage in (None, *range(4)), f"engine.stage is a ZeRO stage, 0 to 3, not {self.stage}")
        _demand(self.group is None or self.group >= 1, f"engine.group is a number of ranks, not {self.group}")
        _demand(self.timeout > 0, "engine.timeout must be a positive number of seconds")


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """What each tier may hold, as text such as "20GiB", ``nvme`` with its folder: "/scratch:500GiB". None: no limit.

    ``activations``: what becomes of what each unit saves for its backward.
    """

    device: str | None = None
    host: str | None = None
    nvme: str | None = None
    activations: Literal["auto", "keep", "offload", "recompute"] = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    model: ModelConfig
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    @property
    def model_name(self) -> str:
        """The family with its size, or with where it comes from."""
        model = self.model
        source = model.path.rstrip("/").rpartition("/")[2] if model.path else None
        return "-".join(part for part in (model.family, source or model.model_type or model.size) if part)

    @property
    def run_name(self) -> str:
        """``run.name``, or the model's with the engine behind it where that is not ours."""
        engine = self.engine.name
        return self.run.name or (self.model_name if engine == "paged" else f"{self.model_name}-{engine}")


def from_mapping(tree: Mapping[str, Any]) -> Config:
    """The config that ``tree`` (nested mappings) spells out. Raises ConfigError naming the key."""
    made: Config = _convert(Config, tree, "")
    return made


def to_mapping(config: Config) -> dict[str, Any]:
    """The inverse of ``from_mapping``, in plain lists and dicts, with the run's name filled in."""
    tree = dataclasses.asdict(config)
    tree["run"]["name"] = config.run_name
    tree["optimizer"]["betas"] = list(config.optimizer.betas)
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train.steps": 5}`` from ``{"train": {"steps": 5}}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def field_names() -> list[str]:
    """Every dotted key there is: ``run.name``, ``train.steps``, ..."""
    parts = typing.get_type_hints(Config).items()
    return [f"{part}.{item.name}" for part, kind in parts for item in dataclasses.fields(kind)]


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that is not among ``known``, with the nearest one that is."""
    known = list(known)
    section, _, last = key.rpartition(".")
    near = difflib.get_close_matches(key, known, n=1)
    near = near or [name for name in known if name.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(last, known, n=1, cutoff=0.4)
    siblings = [name for name in known if section and name.startswith(f"{section}.")] or known
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(siblings)}"
    return ConfigError(f"there is no setting {key}: {hint}")


def assignments(arguments: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """``{"run": "runs/a"}`` from ``run=runs/a``. Raises ConfigError for what is no assignment to a ``known`` key."""
    found = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        _demand(bool(equals), f"{argument} is no setting: write key=value, or --help to see what there is")
        if key not in known:
            raise unknown_key(key, known)
        found[key] = value
    return found


def _convert(kind: Any, value: Any, key: str) -> Any:
    """``value`` as the annotation ``kind`` demands. Raises ConfigError naming ``key``."""
    if dataclasses.is_dataclass(kind):
        return _convert_part(typing.cast("type[Any]", kind), value, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        _demand(value in arguments, f"{key} must be one of {', '.join(arguments)}, not {value!r}")
        return value
    if origin is types.UnionType:
        return None if value is None else _convert(arguments[0], value, key)
    if origin is tuple:
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        _demand(fits, f"{key} must be {len(arguments)} values, not {value!r}")
        return tuple(_convert(each, item, key) for each, item in zip(arguments, value, strict=True))
    plain = origin or kind
    if plain in {float, str} and isinstance(value, int) and not isinstance(value, bool):
        return plain(value)  # as a size in bytes, or a name of digits
    fits = isinstance(value, plain) and (plain is bool or not isinstance(value, bool))
    _demand(fits, f"{key} must be of type {plain.__name__}, not {value!r}")
    return value


def _convert_part(kind: type[Any], value: Any, key: str) -> Any:
    _demand(isinstance(value, Mapping), f"{key or 'the config'} must hold settings, not {value!r}")
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise unknown_key(f"{prefix}{name}", field_names() if key else list(hints))
    for item in dataclasses.fields(kind):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        _demand(not required or item.name in value, f"{prefix}{item.name} must be given")
    return kind(**{name: _convert(hints[name], entry, f"{prefix}{name}") for name, entry in value.items()})
