"""From command-line overrides to a Config. Hydra's compose API: no folders, no logging set up."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from importlib import resources
from typing import Any

from ciuic_dist import config

_MODULE = "ciuic_dist.configs"
_GROUPS = ("model", "engine")
_FREE = "model.overrides."  # below it stand fields of the Hugging Face config, which has its own check


def compose(overrides: Sequence[str]) -> config.Config:
    """The config that ``train.yaml`` and ``overrides`` (``group=option`` or ``section.field=value``) make.

    Raises ConfigError, in one line, naming the override that is wrong and the nearest right one.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    checked = [_checked(override) for override in overrides]
    if not any(override.startswith("+model=") or ".family=" in override for override in checked):
        raise config.ConfigError(f"no model: add +model=<name>; there are {', '.join(options('model'))}")
    try:
        with initialize_config_module(_MODULE, version_base="1.3"):
            tree: Any = OmegaConf.to_container(hydra_compose("train", overrides=checked), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise config.ConfigError(f"cannot read {' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    return config.from_mapping(tree)


def options(group: str) -> list[str]:
    """The names there are for ``group=<name>``."""
    files = resources.files(_MODULE).joinpath(group).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def help_text() -> str:
    """All settings with their defaults and what they mean, and the models and engines there are."""
    settings = _text("train.yaml").partition("\n\n")[2]  # what comes before is for Hydra
    engine = textwrap.indent(_text("engine/paged.yaml").partition("\n")[2], "  ")
    lines = ["usage: torchrun --nproc-per-node N -m ciuic_dist.train +model=<name> [section.field=value ...]", ""]
    lines += [settings, f"engine:\n{engine}", "model:", *_model_fields(), ""]
    for group in _GROUPS:
        lines.append(f"{'+' if group == 'model' else ''}{group}=<name>, one of")
        for name in options(group):
            about = _text(f"{group}/{name}.yaml").partition("\n")[0].removeprefix("# ")
            lines.append(f"  {name:<12}{about}")
        lines.append("")
    return "\n".join(lines)


def _model_fields() -> list[str]:
    """A line for each field that some model has, from the first that has it."""
    lines: dict[str, str] = {}
    for name in options("model"):
        for line in _text(f"model/{name}.yaml").splitlines()[2:]:  # what comes before is for Hydra
            lines.setdefault(line.partition(":")[0], f"  {line}")
    return list(lines.values())


def _text(file: str) -> str:
    return resources.files(_MODULE).joinpath(file).read_text(encoding="utf-8")


def _checked(override: str) -> str:
    """``override`` in the form Hydra takes whether or not the key is there already; its key is a known one."""
    key, equals, value = override.lstrip("+").partition("=")
    if not equals or key.startswith(("-", "~")):
        raise config.ConfigError(f"{override} is no setting: write section.field=value, or --help to see what there is")
    if key in _GROUPS:
        names = options(key)
        if value not in names:
            near = difflib.get_close_matches(value, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? There" if near else "there"
            raise config.ConfigError(f"there is no {key} {value}: {hint} are {', '.join(names)}")
        return f"+model={value}" if key == "model" else f"{key}={value}"
    if key not in config.field_names() and not key.startswith(_FREE):
        raise config.unknown_key(key, config.field_names())
    return f"++{key}={value}"
