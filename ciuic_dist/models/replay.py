"""The recorded operations run again on the CPU, and only those that somebody will see.

Backwards through the program: an operation is live if it writes a storage that a live one reads
or that the module keeps. Dead operations are left out, except that random ones before a live random
one still draw their numbers, into memory that is freed at once: it must find the generator where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves, tree_map_only

from ciuic_dist.models.recording import Call, View

Storages = dict[int, UntypedStorage]


@dataclass(frozen=True, slots=True)
class Step:
    """A call to run, and the storages that nobody touches after it."""

    call: Call
    live: bool
    finished: tuple[int, ...]


class Program:
    """The recipe of a recorded module."""

    def __init__(self, calls: Sequence[Call], places: Sequence[tuple[Tensor, View | None]], seed: int) -> None:
        self._seed = seed
        self._calls = calls
        self._places = places
        self._constants = [tensor for tensor, view in places if view is None]
        self._kept: dict[int, list[tuple[Tensor, View]]] = {}
        for tensor, view in places:
            if view is not None:
                self._kept.setdefault(view.storage, []).append((tensor, view))
        self._steps = _live_steps(calls, frozenset(self._kept))

    def only(self, tensors: Collection[Tensor]) -> Program:
        """The recipe of some of its tensors, with the values that they have among all."""
        chosen = set(tensors)
        return Program(self._calls, [place for place in self._places if place[0] in chosen], self._seed)

    def replay(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        """See Recipe.replay. Peak memory: the storages in work, as a rule one parameter."""
        default_dtype = torch.get_default_dtype()
        try:
            with kept_random_state(), torch.no_grad():
                torch.default_generator.manual_seed(self._seed)
                for tensor in self._constants:
                    emit(tensor, tensor.detach().clone())
                self._run(emit)
        finally:
            torch.set_default_dtype(default_dtype)

    def _run(self, emit: Callable[[Tensor, Tensor], None]) -> None:
        storages: Storages = {}
        for step in self._steps:
            torch.set_default_dtype(step.call.default_dtype)
            _run_call(step.call, storages if step.live else {})
            for key in step.finished:
                self._emit(key, storages.pop(key), emit)

    def _emit(self, key: int, storage: UntypedStorage, emit: Callable[[Tensor, Tensor], None]) -> None:
        for tensor, view in self._kept.get(key, ()):
            emit(tensor, view.on(storage).to(tensor.dtype))


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Whatever is drawn inside, the CPU's default generator is left as it was found."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def _live_steps(calls: Sequence[Call], kept: frozenset[int]) -> list[Step]:
    steps: list[Step] = []
    live = set(kept)
    seen: set[int] = set()
    drawn = False
    for call in reversed(calls):
        # What a random call reads may decide how much it draws: those are never run on scratch.
        if call.defines & live or (drawn and call.random and call.uses - call.defines):
            drawn |= call.random
            touched = call.uses | call.defines
            steps.append(Step(call, True, tuple(sorted(touched - seen))))
            seen |= touched
            live = (live - call.kills) | call.uses
        elif call.random and drawn:
            steps.append(Step(call, False, ()))
    return steps[::-1]


def _run_call(call: Call, storages: Storages) -> None:
    def real(view: View) -> Tensor:
        if view.storage not in storages:  # its maker was dead: the first live call overwrites it
            storages[view.storage] = _allocate(view.nbytes)
        return view.on(storages[view.storage])

    args, kwargs = tree_map_only(View, real, (call.args, call.kwargs))
    result = call.func(*args, **kwargs)
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    for view, output in zip(call.outputs, outputs, strict=True):
        if view is not None:
            storages[view.storage] = _storage_of(view, output)


def _storage_of(view: View, output: Tensor) -> UntypedStorage:
    """The output's storage, in the layout that the meta kernel promised to later calls."""
    storage = output.untyped_storage()
    place: tuple[Any, ...] = (storage.nbytes(), output.stride(), output.storage_offset())
    if place != (view.nbytes, view.stride, view.offset):
        storage = _allocate(view.nbytes)
        view.on(storage).copy_(output)
    return storage


def _allocate(nbytes: int) -> UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8).untyped_storage()
