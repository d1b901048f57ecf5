"""What units save in forward, under a budget: in the first step all of it goes down, then each unit has its way.

With nothing below, all that can be made again is, in the first step. Whether it can is known when a forward has run;
it then runs once more, from the same random state, as one that is run again in the backward.

A unit's module gets another ``forward`` around its own: hooks of modules would not all run where it raises.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

from ciuic_dist.planning.activations import (
    ActivationPlan,
    Saves,
    Way,
    follow_wishes,
    plan_activations,
    plan_recomputation,
)
from ciuic_dist.sharding.spill import Spill
from ciuic_dist.sharding.unit import Unit

_PLAIN = (Tensor, bool, int, float, complex, str, torch.dtype, torch.device, type(None))
"""Arguments that a forward can be given a second time: nothing in them can have changed but by error."""
_Forward = Callable[..., Any]


class Activations:
    """Watches what units save in the first step, and does what is decided from then on."""

    def __init__(self, module: nn.Module, units: Sequence[Unit], spill: Spill, wishes: Sequence[Way] | None) -> None:
        """``wishes``: what to do with each unit's where lower tiers have room; None: what is best, or forced."""
        self._units = units
        self._wishes = wishes if spill.activations is None else [spill.activations] * len(units)
        self._spill = spill
        self._stays = {flat.full.untyped_storage()._cdata for unit in units for flat in unit.flats}
        self._stays |= {buffer.untyped_storage()._cdata for buffer in module.buffers()}
        self._store = spill.activation_store(self._stays_anyway)
        self._seen: dict[int, _Seen] = {}  # by unit, in the order of the forward
        self._plan: ActivationPlan | None = None
        self._ways: dict[int, Way] = {}
        self._before: dict[int, int] = {}
        self._root_keeps = True
        self.crowded = 0
        """Bytes that have to stay on the device, since lower tiers have no room."""
        for unit in units:
            unit.module.forward = self._around(unit, unit.module.forward)

    @property
    def needed(self) -> int:
        """Bytes of the device, beside what the first step took."""
        return 0 if self._plan is None else self._plan.needed

    def ways(self) -> dict[str, int]:
        """How many units keep, offload and recompute; none before the first step is over."""
        counts = Counter(() if self._plan is None else self._plan.ways)
        return {way.value: counts[way] for way in Way}

    def decide(self, room: int) -> None:
        """The first step is over: divide ``room`` bytes of the device, which it left free."""
        saves = [seen.saves(self._units[index]) for index, seen in self._seen.items()]
        if self._spill.no_room_below:
            self._plan = plan_recomputation(saves, room, self._spill.activations)
        else:
            self._plan = self._with_room_below(saves, room)
        self.crowded += self._plan.crowded
        order = list(self._seen)
        self._ways = dict(zip(order, self._plan.ways, strict=True))
        self._before = dict(zip(order[1:], order, strict=False))
        self._root_keeps = all(way is Way.KEEP for index, way in self._ways.items() if self._units[index].is_root)

    def _with_room_below(self, saves: Sequence[Saves], room: int) -> ActivationPlan:
        below = max(0, self._spill.room_below - sum(seen.padding for seen in self._seen.values()))
        if self._wishes is not None:
            return follow_wishes(saves, [self._wishes[index] for index in self._seen], room, below)
        return plan_activations(saves, room, self._spill.transfers.stats.bandwidth, below)

    def watch_anew(self) -> None:
        """The next step is like the first."""
        self._seen, self._plan, self._ways, self._before, self.crowded = {}, None, {}, {}, 0

    def backward_begins(self, unit: Unit) -> None:
        """Have the activations of the unit before come meanwhile."""
        if self._plan is None:
            self._look_behind(unit)
        elif self._plan.ahead and unit.index in self._before:
            self._store.prefetch(self._before[unit.index])

    def _look_behind(self, unit: Unit) -> None:
        """What later units have saved is gone now, or doesn't go in turn: graphs may be kept, or left unused."""
        self._store.settle()  # what is under way is alive
        order = list(self._seen)
        for index in order[order.index(unit.index) + 1 :] if unit.index in self._seen else ():
            if not self._units[index].is_root and self._store.is_alive(index):
                self._seen[index].in_turn = False

    def settle(self) -> None:
        """Nothing is under way any more, and lower tiers have the room of graphs that are freed."""
        self._store.settle()

    def _stays_anyway(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._stays

    def _around(self, unit: Unit, forward: _Forward) -> _Forward:
        @wraps(forward)
        def around(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            if self._store.is_overruled():  # the user's own checkpoint, or what it runs again in backward
                self._seen.setdefault(unit.index, _Seen(recomputable=False))
                return forward(*args, **kwargs)
            if self._plan is None:
                return self._watch(unit, forward, args, kwargs)
            return self._run(self._ways.get(unit.index, Way.OFFLOAD), unit, forward, args, kwargs)

        return around

    def _run(self, way: Way, unit: Unit, forward: _Forward, args: Any, kwargs: Any) -> Any:
        if way is Way.KEEP:
            with nullcontext() if self._root_keeps else self._store.keeping():
                return forward(*args, **kwargs)
        with self._store.saving(unit.index, leaving=self._leaving):
            if way is Way.RECOMPUTE and _is_plain((args, kwargs)):
                return _run_again_later(forward, args, kwargs)
            return forward(*args, **kwargs)

    def _watch(self, unit: Unit, forward: _Forward, args: Any, kwargs: Any) -> Any:
        """Offload all there is room for, or make it again later, and remember what it was."""
        inputs = pytree.tree_leaves((args, kwargs))
        drawn = _random_state(inputs) if self._spill.no_room_below else None
        before, stalled, began = _state_of(unit.module, inputs), self._stall_seconds, time.monotonic()
        with self._store.saving(unit.index, leaving=self._leaving) as saved:
            result = forward(*args, **kwargs)
        seconds = time.monotonic() - began - (self._stall_seconds - stalled)
        again = saved.alone and _is_plain((args, kwargs)) and _is_same(before, _state_of(unit.module, inputs))
        seen = self._seen.setdefault(unit.index, _Seen())
        if drawn is not None:
            again = again and not unit.is_root
            more = again * max(0, saved.nbytes_kept - self._store.bytes_to_store(inputs))
            seen.note(more, more, 0, seconds, alone=saved.alone, recomputable=again)
            if not again:
                return result
            del result
            _set_random_state(drawn)
            return self._run(Way.RECOMPUTE, unit, forward, args, kwargs)
        made = saved.nbytes - self._store.bytes_to_store(inputs)
        padding = saved.slots * self._spill.page_bytes - saved.nbytes
        seen.note(saved.nbytes, made, padding, seconds, alone=saved.alone, recomputable=again)
        self.crowded += saved.nbytes_kept
        return result

    @property
    def _leaving(self) -> int:
        """Slots of lower tiers that others will need."""
        return self._spill.pages_to_come

    @property
    def _stall_seconds(self) -> float:
        return self._spill.transfers.stats.stall_seconds


@dataclass(slots=True)
class _Seen:
    """What a unit's forwards have saved, the most of any moment."""

    nbytes: int = 0
    made: int = 0
    padding: int = 0
    """Bytes of pages in lower tiers that stay empty."""
    seconds: float = 0.0
    recomputable: bool = True
    in_turn: bool = True
    outstanding: int = 0
    """Bytes of forwards whose backward hasn't come."""

    def note(self, nbytes: int, made: int, padding: int, seconds: float, *, alone: bool, recomputable: bool) -> None:
        self.outstanding = nbytes if alone else self.outstanding + nbytes
        self.padding = padding if alone else self.padding + padding
        self.nbytes = max(self.nbytes, self.outstanding)
        self.made = max(self.made, made)
        self.seconds = max(self.seconds, seconds)
        self.recomputable = self.recomputable and recomputable
        self.in_turn = self.in_turn and alone

    def saves(self, unit: Unit) -> Saves:
        again = self.recomputable and not unit.is_root
        return Saves(
            self.nbytes,
            self.made,
            self.seconds,
            recomputable=again,
            at_once=not unit.is_root,
            in_turn=self.in_turn,
        )


def _run_again_later(forward: _Forward, args: Any, kwargs: Any) -> Any:
    """Checkpointed; all tensors are arguments, for only those are saved where ``saving`` sees them."""
    leaves, spec = pytree.tree_flatten((args, kwargs))

    def run(*leaves: Any) -> Any:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return forward(*args, **kwargs)

    return checkpoint(run, *leaves, use_reentrant=False)


def _is_plain(tree: Any) -> bool:
    """Whether no argument is an object that a forward could write to, such as a cache of keys and values."""
    return all(isinstance(leaf, _PLAIN) for leaf in pytree.tree_leaves(tree))


def _random_state(inputs: Sequence[object]) -> _RandomState:
    """Of the CPU, and of the devices that ``inputs`` are on."""
    return torch.get_rng_state(), *get_device_states(*inputs)


def _set_random_state(state: _RandomState) -> None:
    torch.set_rng_state(state[0])
    set_device_states(*state[1:])


_RandomState = tuple[Tensor, list[int], list[Tensor]]
_State = list[tuple[object, int]]


def _state_of(module: nn.Module, inputs: Sequence[object]) -> _State:
    """``inputs``, and the attributes and buffers of a module and those in it, with the versions of tensors."""
    parts: list[Mapping[str, object]] = []
    for part in module.modules():
        parts += [vars(part), part._buffers]
    values = [*inputs, *(value for part in parts for value in part.values())]
    return [(value, value._version if isinstance(value, Tensor) else 0) for value in values]


def _is_same(before: _State, after: _State) -> bool:
    pairs = zip(before, after, strict=False)
    return len(before) == len(after) and all(a is b and version == other for (a, version), (b, other) in pairs)
