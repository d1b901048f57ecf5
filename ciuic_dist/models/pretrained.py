"""Values that come from published files instead of from an initialisation."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ciuic_dist.config import ConfigError
from ciuic_dist.hub import Repository
from ciuic_dist.models.conversion import Matched, match
from ciuic_dist.models.deferred import Recipe, distinct_tensors, recipe_of, record
from ciuic_dist.models.replay import Program, kept_random_state
from ciuic_dist.models.safetensors import FileTensor, tensors_of
from ciuic_dist.models.stored import Source, Stored, equal

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_RECOMPUTED = ("rotary_emb.inv_freq", "position_ids")  # buffers that old files hold; transformers passes over them too


def pretrained(model: nn.Module, path: str, seed: int) -> Recipe:
    """The recipe of a model of transformers on meta whose weights lie at ``path``, a hub id or a folder.

    Every tensor has the value that ``from_pretrained`` gives it, in the dtype that it has in ``model``. safetensors are
    read when values are asked for, and only what is asked for; other files whole. What no file holds is as in a random
    model after ``seed``. What is amiss but can be is said in a warning, on one rank.

    Raises ConfigError, before any weight is read, where there are no files, they can't be fetched, or they are of
    another model or quantized.
    """
    repository = Repository(path)
    _check_plain(repository)
    files = _weight_files(repository)
    folder = files[0].parent
    if files[0].suffix != ".safetensors":
        return _whole(model, path, folder, seed, "it has no safetensors")
    stored: dict[str, FileTensor] = {}
    for file in files:
        stored |= tensors_of(file)
    try:
        matched = match(model, stored)
    except Exception as error:  # noqa: BLE001 (transformers' own, and another in each of its versions)
        return _whole(
            model, path, folder, seed, f"this version of transformers converts its weights otherwise ({error!r})"
        )
    sources = _by_tensor(model, matched.sources, path)
    missing = {tensor for tensor in distinct_tensors(model) if tensor not in sources}
    _remark(model, path, matched, missing)
    return Stored(sources, _drawn(model, missing, seed))


class WholePretrained:
    """The recipe of a module whose weights transformers reads: the whole model is on the host then."""

    def __init__(self, module: nn.Module, folder: Path, seed: int) -> None:
        self._class: Any = type(module)
        self._config = module.config
        self._dtype = module.dtype
        self._tensors = _by_name(module)
        self._folder = folder
        self._seed = seed

    @property
    def nbytes(self) -> int:
        """Bytes on the host while it is replayed."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """See models.deferred.Recipe."""
        with kept_random_state():
            torch.default_generator.manual_seed(self._seed)
            source = self._class.from_pretrained(self._folder, config=self._config, dtype=self._dtype)
        values = _by_name(source)
        for name, tensor in self._tensors.items():
            emit(tensor, values.pop(name).detach().to(tensor.dtype))


class _Twin:
    """The recipe of some tensors of a model, from that of a recorded one of the same names."""

    def __init__(self, recipe: Recipe, tensors: Mapping[Tensor, Tensor]) -> None:
        self._recipe = recipe
        self._tensors = tensors

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """See models.deferred.Recipe."""
        self._recipe.replay(lambda twin, real: emit(self._tensors[twin], real.to(self._tensors[twin].dtype)))


def _drawn(model: nn.Module, missing: set[Tensor], seed: int) -> Recipe:
    """What the model's own initialisation makes of the ``missing`` tensors."""
    recipe = recipe_of(model)
    if isinstance(recipe, Program):
        return recipe.only(missing)
    if not missing:
        return Program([], [], seed)
    kind: Any = type(model)
    twin = record(lambda: kind._from_config(copy.deepcopy(model.config), dtype=model.dtype), seed)
    theirs, ours = _by_name(twin), _by_name(model)
    chosen = {theirs[name]: tensor for name, tensor in ours.items() if tensor in missing}
    program = recipe_of(twin)
    assert isinstance(program, Program)
    return _Twin(program.only(list(chosen)), chosen)


def _by_tensor(model: nn.Module, found: Mapping[str, Source], path: str) -> dict[Tensor, Source]:
    sources: dict[Tensor, Source] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        source = found.get(name)
        if source is None or not isinstance(tensor, Tensor):
            continue
        if source.shape != tuple(tensor.shape):
            raise ConfigError(
                f"{path} is of another model: {name} is {list(source.shape)} there and {list(tensor.shape)} here"
            )
        if tensor in sources and not equal(sources[tensor], source):
            raise ConfigError(
                f"{path} holds {name} and what the model ties it to with different values: "
                "set tie_word_embeddings to false in the model's config"
            )
        sources.setdefault(tensor, source)
    if not sources:
        raise ConfigError(f"{path} is of another model: no name in its files is one of this model")
    return sources


def _whole(model: nn.Module, path: str, folder: Path, seed: int, reason: str) -> WholePretrained:
    recipe = WholePretrained(model, folder, seed)
    _say(f"each rank reads all of {path} ({recipe.nbytes / 1e9:.2f} GB) before it keeps its part: {reason}")
    return recipe


def _remark(model: Any, path: str, matched: Matched, missing: set[Tensor]) -> None:
    """Say what the files lack, and what they have for nothing."""
    lacking = [name for name, tensor in model.named_parameters() if tensor in missing]
    if lacking:
        _say(f"{path} lacks {len(lacking)} of the model's weights, which are drawn: {_some(lacking)}")
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), *map(re.escape, _RECOMPUTED)]
    unused = [name for name in matched.unused if not any(re.search(pattern, name) for pattern in ignored)]
    if unused:
        _say(f"{path} has {len(unused)} weights that this model has no place for: {_some(unused)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _say(text: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        warnings.warn(text, stacklevel=4)


def _check_plain(repository: Repository) -> None:
    config = repository.config
    if config is not None and json.loads(config.read_text(encoding="utf-8")).get("quantization_config") is not None:
        raise ConfigError(f"the weights at {repository} are quantized: training needs plain ones")


def _weight_files(repository: Repository) -> list[Path]:
    """The files that hold the weights, safetensors where there are any. Raises ConfigError where there are none."""
    names = (*_SAFETENSORS, *_PICKLED)
    found = next(filter(None, map(repository.find, names)), None)
    if found is None:
        raise ConfigError(f"{repository} holds no weights ({', '.join(names)})")
    if found.suffix != ".json":
        return [found]
    parts = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    files = {part: repository.find(part) for part in parts}
    lost = [part for part, file in files.items() if file is None]
    if lost:
        raise ConfigError(f"{repository} lacks {lost[0]}, which its {found.name} names: fetch it again")
    return [file for file in files.values() if file is not None]


def _by_name(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
