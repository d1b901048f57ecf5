"""A model's weights as Hugging Face publishes them: safetensors of a few GB, an index, and the config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from ciuic_dist.models.safetensors import Layout, write_tensors
from ciuic_dist.models.stored import Source, whole

LARGEST: Final = 5_000_000_000
"""Bytes of a file, where a single tensor isn't larger."""


class TypedSource(Source, Protocol):
    """A source that says in which dtype its values lie."""

    @property
    def dtype(self) -> torch.dtype:
        """The values'."""
        ...


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: tensors, files with tensors, and bytes of tensors."""

    tensors: int
    files: int
    nbytes: int


def publish(model: nn.Module, sources: Mapping[str, TypedSource], folder: Path, largest: int = LARGEST) -> Written:
    """Write what ``from_pretrained`` loads into ``folder``: the weights in ``sources``, and the config.

    ``model`` is of transformers, on meta; ``sources`` go by the names in its state dict. Names and layout are those of
    published checkpoints where transformers can tell them tensor by tensor, else the model's own, which it loads too.
    In memory are one tensor, and what it is converted to.
    """
    kept = _untied(model, sources)
    layouts = {name: Layout(source.shape, source.dtype) for name, source in kept.items()}
    reverts = _reverts_one_by_one(model, layouts)

    def published(name: str, value: Tensor) -> dict[str, Tensor]:
        return _reverted(model, {name: value}) if reverts else {name: value}

    outcomes = {name: _layouts(published(name, _meta(layout))) for name, layout in layouts.items()}
    files = list(_divide(outcomes, largest))
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(files, start=1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        contents = {key: layout for name in names for key, layout in outcomes[name].items()}
        values = (value for name in names for value in published(name, whole(kept[name], kept[name].dtype)).values())
        write_tensors(folder / file, contents, values)
        weight_map |= dict.fromkeys(contents, file)
        total += sum(layout.nbytes for layout in contents.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(f"{text}\n", encoding="utf-8")
    _write_config(model, next(layout.dtype for layout in layouts.values() if layout.dtype.is_floating_point), folder)
    return Written(len(weight_map), len(files), total)


def _untied(model: Any, sources: Mapping[str, TypedSource]) -> dict[str, TypedSource]:
    """Of tied weights one, the first that there is; and none that the model doesn't publish."""
    ignored = model._keys_to_ignore_on_save or ()
    firsts: dict[Tensor, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in sources and name not in ignored:
            firsts.setdefault(tensor, name)
    return {name: sources[name] for name in firsts.values()}


def _reverts_one_by_one(model: nn.Module, layouts: Mapping[str, Layout]) -> bool:
    """Whether transformers makes the same of each tensor alone as of all together; tried on meta."""
    metas = {name: _meta(layout) for name, layout in layouts.items()}
    try:
        together = _layouts(_reverted(model, metas))
        alone: dict[str, Layout] = {}
        for name, meta in metas.items():
            alone |= _layouts(_reverted(model, {name: meta}))
    except Exception:  # noqa: BLE001 (of transformers' conversions, whichever can't do with one tensor)
        return False
    return together == alone


def _reverted(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Tensor] = revert_weight_conversion(model, tensors)  # type: ignore[arg-type]
    return reverted


def _divide(outcomes: Mapping[str, Mapping[str, Layout]], largest: int) -> Iterator[list[str]]:
    """The names of each file: in order, as many as fit."""
    names: list[str] = []
    size = 0
    for name, outcome in outcomes.items():
        nbytes = sum(layout.nbytes for layout in outcome.values())
        if names and size + nbytes > largest:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names


def _write_config(model: Any, dtype: torch.dtype, folder: Path) -> None:
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.use_cache = True  # training has no use for it, generating has
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _layouts(tensors: Mapping[str, Tensor]) -> dict[str, Layout]:
    return {name: Layout(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _meta(layout: Layout) -> Tensor:
    return torch.empty(layout.shape, dtype=layout.dtype, device="meta")
