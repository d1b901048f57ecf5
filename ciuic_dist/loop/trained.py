"""What a run has trained, for those who use it: the model without values, and where these lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from torch import nn

from ciuic_dist.checkpoint.tensors import SavedTensor, saved_tensors
from ciuic_dist.config import Config, ConfigError, from_mapping
from ciuic_dist.data import tokenize
from ciuic_dist.data.tokenize import Tokenizer
from ciuic_dist.loop.folder import RunFolder
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import defer, distinct_tensors, materialize, recipe_of
from ciuic_dist.models.replay import Program
from ciuic_dist.models.stored import Stored


@dataclass(frozen=True, slots=True)
class Trained:
    """``tensors`` by their names in the state dict of ``model``, which is on meta; ``checkpoint`` is where they lie."""

    config: Config
    checkpoint: Path
    tokenizer: Tokenizer
    model: nn.Module
    tensors: dict[str, SavedTensor]


def trained(run: Path, checkpoint: Path | None = None) -> Trained:
    """What is in the newest complete checkpoint of ``run``, or in ``checkpoint``, a folder of any run of that model.

    Raises ConfigError where there is no such run or checkpoint, and DataError where its tokenizer is gone.
    """
    config = _config(run)
    where = checkpoint or _newest(run, config)
    tokenizer = tokenize.named(config.data.tokenizer)
    plain = replace(config.model, pretrained=False)
    vocabulary = None if config.model.pretrained else tokenizer.vocab_size
    model = build(plain, vocab_size=vocabulary, seed=config.train.seed)
    try:
        return Trained(config, where, tokenizer, model, saved_tensors(where, model))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _config(run: Path) -> Config:
    settings = run / "config.yaml"
    if not settings.is_file():
        raise ConfigError(f"there is no run at {run}: it would have a config.yaml")
    return from_mapping(yaml.safe_load(settings.read_text(encoding="utf-8")))


def _newest(run: Path, config: Config) -> Path:
    folder = RunFolder(replace(config, run=replace(config.run, folder=str(run.parent), name=run.name)))
    step = folder.newest() if (run / "checkpoints").is_dir() else 0
    if not step:
        raise ConfigError(f"{run} has no complete checkpoint yet")
    return folder.checkpoint(step)


def filled(found: Trained) -> nn.Module:
    """The model with its values, whole on the CPU."""
    model = found.model
    own = model.state_dict(keep_vars=True)
    sources = {own[name]: tensor for name, tensor in found.tensors.items()}
    recipe = recipe_of(model)
    assert isinstance(recipe, Program)
    rest = recipe.only([tensor for tensor in distinct_tensors(model) if tensor not in sources])
    return materialize(defer(model, Stored(sources, rest)))
