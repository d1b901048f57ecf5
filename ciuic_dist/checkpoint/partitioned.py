"""Checkpoints of models whose masters and state another library keeps, under the names of ours, as for torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ciuic_dist.checkpoint.entries import extra_states, persistent_buffers, share_out
from ciuic_dist.checkpoint.folder import begin, draft_of
from ciuic_dist.checkpoint.install import install_buffers, install_extra_states
from ciuic_dist.checkpoint.manifest import RankFiles
from ciuic_dist.checkpoint.names import EXTRA, MODEL, SCALARS, STATE
from ciuic_dist.checkpoint.pieces import BoxedPiece
from ciuic_dist.checkpoint.saved import Saved
from ciuic_dist.checkpoint.torch_entries import check_shapes, small_entries_of, state_of
from ciuic_dist.checkpoint.writing import RankWriter, commit
from ciuic_dist.comm.groups import gather_objects, rank, world_size
from ciuic_dist.comm.together import on_rank_zero, together


class Part(Protocol):
    """What a rank gets of a parameter of ``shape`` and its state: ``numel`` elements from ``start`` on."""

    shape: torch.Size
    start: int
    numel: int
    on_all_ranks: bool
    """Whether every rank gets the same, and one is to write it."""
    owner: Tensor | None
    """What the optimizer keeps its state for, perhaps of many parameters; None for one that isn't trained."""

    def get(self, key: str | None) -> Tensor:
        """The masters, or the state of that key: 1-D. Every rank calls it."""
        ...

    def set(self, values: Tensor, key: str | None) -> None:
        """The reverse, on this rank alone."""
        ...


Filling = Callable[[], AbstractContextManager[None]]
"""Entered by every rank when the optimizer's state has been made, before parts are set; left when all are."""


@torch.no_grad()
def save_partitioned(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    parts: Mapping[str, Part],
    extra: dict[str, Any],
    *,
    compress: bool = False,
) -> None:
    """Write what ``cd.save`` would write of the same model sharded by ciuic_dist, a parameter at a time.

    Every rank calls it. ``parts`` are by the parameters' names.
    """
    on_rank_zero(partial(begin, path))
    with together():
        writer = RankWriter(draft_of(path), rank())
    with together(), writer:
        _write(writer, _entries(parts, optimizer), compress=compress)
        for name, entry in small_entries_of(model, optimizer, extra).items() if rank() == 0 else ():
            writer.add(name, entry)
        files = writer.finish()
    all_files: list[RankFiles] = gather_objects(files)
    on_rank_zero(partial(commit, path, all_files))


@torch.no_grad()
def load_partitioned(
    path: Path, model: nn.Module, optimizer: Optimizer, parts: Mapping[str, Part], filling: Filling
) -> dict[str, Any]:
    """Take back what ``save_partitioned`` or ``cd.save`` wrote, but for the groups' settings; returns ``extra``.

    Raises ValueError for a checkpoint of another model, or whose parameters were updated more or less often than others
    that have one count of it here; CorruptCheckpoint, with the model half loaded, for damage.
    """
    with together():
        saved = Saved(path)
        _check(saved, parts, persistent_buffers(model))
        scalars = _scalars(saved, parts)
        objects = saved.read(dict.fromkeys([EXTRA, *extra_states(model)]))
    _make_state(saved, optimizer, parts, scalars)
    with filling(), together():
        saved.expect(
            {entry: BoxedPiece(part.shape, part.start, torch.empty(part.numel, device="meta"))}
            for name, part in parts.items()
            for entry, _ in _large_entries(saved, name)
        )
        for name, part in parts.items():
            for entry, key in _large_entries(saved, name):
                values = torch.empty(part.numel)
                saved.read({entry: BoxedPiece(part.shape, part.start, values)})
                part.set(values, key)
        install_buffers(model, saved)
        install_extra_states(model, objects)
    extra: dict[str, Any] = objects[EXTRA]
    return extra


def _write(writer: RankWriter, entries: Iterable[tuple[str, Any]], *, compress: bool) -> None:
    """To the end of ``entries``, since other ranks take part in each; what has failed is raised then."""
    failed: Exception | None = None
    for name, entry in entries:
        try:
            if failed is None:
                writer.add(name, entry, compress=compress)
        except Exception as error:  # noqa: BLE001 (raised below)
            failed = error
    if failed is not None:
        raise failed


def _entries(parts: Mapping[str, Part], optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """What this rank writes; gathers what others do."""
    alike = {name: part.numel for name, part in parts.items() if part.on_all_ranks}
    writers = dict(zip(alike, share_out(alike.values(), world_size()), strict=True))
    for name, part in parts.items():
        mine = writers.get(name, rank()) == rank()
        state = {} if part.owner is None else optimizer.state.get(part.owner, {})
        large = [key for key, value in state.items() if value.dim()]
        for key in (None, *large):
            values = part.get(key)
            if mine and part.numel:
                yield _entry_of(name, key), BoxedPiece(part.shape, part.start, values)
        if mine and part.start == 0:
            yield from ((f"{SCALARS}{name}.{key}", value) for key, value in state.items() if key not in large)


def _entry_of(name: str, key: str | None) -> str:
    return f"{MODEL}{name}" if key is None else f"{STATE}{name}.{key}"


def _large_entries(saved: Saved, name: str) -> list[tuple[str, str | None]]:
    """With the key of each: the masters', and of state with one value an element."""
    state: list[tuple[str, str | None]] = [
        (entry, key) for entry, key, _ in state_of(saved, name) if entry.startswith(STATE)
    ]
    return [(_entry_of(name, None), None), *state]


def _check(saved: Saved, parts: Mapping[str, Part], buffers: Mapping[str, Tensor]) -> None:
    wanted = {name: buffer.shape for name, buffer in buffers.items()}
    for name, part in parts.items():
        wanted[_entry_of(name, None)] = part.shape
        for entry, _, metadata in state_of(saved, name) if part.owner is not None else ():
            wanted[entry] = part.shape if entry.startswith(STATE) else metadata.size
    check_shapes(saved, wanted)


def _scalars(saved: Saved, parts: Mapping[str, Part]) -> dict[str, dict[str, Tensor]]:
    """By parameter and key. Raises ValueError where they differ of what has one here."""
    found: dict[str, dict[str, Tensor]] = {}
    first: dict[int, str] = {}
    for name, part in parts.items():
        for entry, key, metadata in state_of(saved, name):
            if entry.startswith(SCALARS):
                room = torch.empty(metadata.size, dtype=metadata.properties.dtype)
                found.setdefault(name, {})[key] = saved.read({entry: room})[entry]
        if name in found:
            other = first.setdefault(id(part.owner), name)
            if found[name] != found[other]:
                raise ValueError(
                    f"{saved.path} can't go on here, where one count of updates is kept for all parameters: "
                    f"{name} has {_said(found[name])}, {other} {_said(found[other])}"
                )
    return found


def _said(scalars: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{key} {value.item():g}" for key, value in scalars.items())


def _make_state(
    saved: Saved, optimizer: Optimizer, parts: Mapping[str, Part], scalars: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Room for all state that was saved; zeros where a parameter had none and shares an owner with one that had."""
    optimizer.state.clear()
    for name, part in parts.items():
        if (owner := part.owner) is not None:
            for entry, key, _ in state_of(saved, name):
                if entry.startswith(SCALARS):
                    optimizer.state[owner][key] = scalars[name][key].to(owner.device)
                elif key not in optimizer.state[owner]:
                    optimizer.state[owner][key] = torch.zeros_like(owner)
