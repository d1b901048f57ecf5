"""Any elementwise torch optimizer, on the pieces of the parameters that this rank owns."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ciuic_dist.memory.process import Freed
from ciuic_dist.optim.elementwise import check_elementwise
from ciuic_dist.optim.parts import FlatState, Part, PieceParameter, is_elementwise, piece_parameter
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.layout import Piece
from ciuic_dist.sharding.registry import Home, home_of
from ciuic_dist.sharding.sharded import Sharded

STATE_DTYPES = (None, "8bit")


class PagedOptimizer(Optimizer):
    """Steps an inner optimizer whose parameters are this rank's pieces, 1-D views of the masters.

    ``param_groups`` hold the model's own parameters, for schedulers and for ``zero_grad``; their other
    entries are handed to the inner optimizer at each step.
    """

    def __init__(
        self,
        cls: type[Optimizer],
        params: Iterable[Any],
        *,
        in_backward: bool = False,
        state_dtype: str | None = None,
        **options: Any,
    ) -> None:
        """``cls(params, **options)`` as it would be for a model that isn't sharded.

        ``in_backward``: a unit is updated in the backward as soon as its gradients are reduced, and these are then
        let go; ``step`` does what is left. That leaves no time to clip, or to look at gradients.
        ``state_dtype``: "8bit" keeps fp32 state in 8 bits and a scale for each 128 elements (``compress.blockwise``),
        which is not exact; None in the dtypes that ``cls`` gives it.

        Raises ValueError for parameters that are no sharded model's, or frozen when they were sharded, for an
        optimizer that looks at more than one element at a time, and for a ``state_dtype`` that there isn't;
        BudgetError where the device has no room for its state and there is nothing below.
        """
        if state_dtype not in STATE_DTYPES:
            raise ValueError(f"state_dtype must be None or '8bit', got {state_dtype!r}")
        self._elementwise = check_elementwise(cls, options)
        groups = normalised(params)
        self._quantized = state_dtype == "8bit"
        self._freed = Freed()
        self._flat_states: dict[int, FlatState] = {}
        self._members = {id(p): self._member(p) for group in groups for p in group["params"]}
        self._sharded: list[Sharded] = []
        self._parts: dict[tuple[int, int], Part] = {}
        self._in_backward = in_backward
        self.inner = cls([{**group, "params": self._pieces_of(group["params"])} for group in groups], **options)
        super().__init__(groups, dict(self.inner.defaults))
        self._serve()

    def _pieces_of(self, parameters: Iterable[nn.Parameter]) -> list[PieceParameter]:
        return [piece for p in parameters for piece in self._members[id(p)].pieces]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update this rank's pieces from the reduced gradients; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for sharded in self._sharded:
            sharded.refuse_torn()
            sharded.update_begins()
        self._sync_groups()
        with ExitStack() as stack:
            for sharded in self._sharded:
                stack.enter_context(sharded.changing())
            for flat in self._flats_in_order():
                self._step_flat(flat, flat.spans())
        for sharded in self._sharded:
            sharded.update_ends()
        return loss

    def _flats_in_order(self) -> list[Flat]:
        """In the order in which gradients come, so that what was touched last is still here."""
        own = {id(part.flat) for part in self._parts.values()}
        return [flat for sharded in self._sharded for flat in sharded.gradients.order if id(flat) in own]

    def _step_flat(self, flat: Flat, spans: Iterator[tuple[int, int]]) -> None:
        if not any(flat.touched):
            return
        whole = all(id(parameter) in self._members for parameter in flat.parameters)
        with flat.held():
            for low, high in spans:
                for start, _ in self._flat_state(flat).within(low, high):
                    if (id(flat), start) in self._parts:
                        self._parts[id(flat), start].step(self.inner)
                if whole:
                    flat.gradient.use_up(high)
        if whole and flat.paging is not None:  # a gradient in pages isn't kept until zero_grad
            flat.zero_grad()

    @torch.no_grad()
    def _consume(self, flat: Flat, spans: Iterator[tuple[int, int]]) -> None:
        """Update ``flat`` in the backward, span by span as they come; its gradients are used up then."""
        sharded = next(sharded for sharded in self._sharded if flat in sharded.flats)
        sharded.updating = True
        self._sync_groups()
        self._step_flat(flat, spans)
        sharded.versions.count_early_update(flat)
        flat.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of this optimizer's parameters."""
        chosen: dict[int, tuple[Flat, list[int]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                home = home_of(parameter)
                assert home is not None
                chosen.setdefault(id(home.flat), (home.flat, []))[1].append(home.index)
        for flat, indices in chosen.values():
            flat.zero_grad(indices)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take one more group; its parameters must be a sharded model's, of this one or another."""
        group = _normalised_group(param_group)
        fresh = {id(p): self._member(p) for p in group["params"] if id(p) not in self._members}
        super().add_param_group(group)
        if len(self.param_groups) > len(self.inner.param_groups):  # not so in construction
            self._members |= fresh
            self.inner.add_param_group({**self.param_groups[-1], "params": self._pieces_of(group["params"])})
            self._serve()

    def _serve(self) -> None:
        """Sort the pieces into parts, and tell the models that this optimizer is theirs."""
        self._sharded = list(dict.fromkeys(member.sharded for member in self._members.values()))
        self._parts.clear()
        for number, group in enumerate(self.inner.param_groups):
            for piece in group["params"]:
                self._part_of(piece).groups[number].append(piece)
        for state in self._flat_states.values():
            state.foresee(self._elementwise)
        for flat in self._flats_in_order():
            whole = all(id(parameter) in self._members for parameter in flat.parameters)
            flat.consume = _early(WeakMethod(self._consume), flat) if self._in_backward and whole else None
        for sharded in self._sharded:
            sharded.serve(self)
        self._put_state_away()

    def _put_state_away(self) -> None:
        """What the inner optimizer made in its construction, or was given, goes into columns where there are any."""
        for part in self._parts.values():
            with part.open_state(self.inner, dirty=True):
                pass

    def _part_of(self, piece: PieceParameter) -> Part:
        flat, state = piece.flat, self._flat_state(piece.flat)
        low, high = next(span for span in state.spans() if span[0] <= piece.place.shard_offset < span[1])
        if (id(flat), low) not in self._parts:
            self._parts[id(flat), low] = Part(flat, low, high, state, len(self.inner.param_groups))
        return self._parts[id(flat), low]

    def _flat_state(self, flat: Flat) -> FlatState:
        if id(flat) not in self._flat_states:
            self._flat_states[id(flat)] = FlatState(flat, self._freed, self._quantized)
        return self._flat_states[id(flat)]

    def _member(self, parameter: Any) -> _Member:
        home = _home(parameter)
        pieces = [
            piece_parameter(home.flat, place)
            for low, high in self._flat_state(home.flat).spans()
            for place in home.flat.pieces(low, high)
            if place.index == home.index
        ]
        return _Member(home.sharded, home.flat, pieces)

    def places(self) -> list[tuple[Flat, Piece]]:
        """Of each parameter that this rank has a piece of: its flat, and the piece, however many spans it lies in."""
        return [(member.flat, member.place) for member in self._members.values() if member.pieces]

    def spans_of(self, flat: Flat) -> list[tuple[int, int, Part | None]]:
        """What is updated at once, with the part for it where any of it is this optimizer's."""
        spans = flat.spans() if id(flat) not in self._flat_states else self._flat_states[id(flat)].spans()
        return [(low, high, self._parts.get((id(flat), low))) for low, high in spans]

    def piece_states(self) -> list[tuple[Flat, Piece, dict[str, Any]]]:
        """The same with the inner optimizer's state; what has one value an element as a ``StateValues``."""
        return [(m.flat, m.place, self._state_of(m)) for m in self._members.values() if m.pieces]

    def _state_of(self, member: _Member) -> dict[str, Any]:
        first = member.pieces[0]
        return {
            key: StateValues(member.place.numel, value.dtype, partial(self._read_state, member, key))
            if is_elementwise(value, first)
            else value
            for key, value in self.inner.state.get(first, {}).items()
        }

    def _read_state(self, member: _Member, key: str) -> Tensor:
        if not self._flat_state(member.flat).in_columns:
            whole: Tensor = self.inner.state[member.pieces[0]][key]
            return whole
        found = []
        for piece in member.pieces:
            with self._part_of(piece).open_state(self.inner, dirty=False):
                found.append(self.inner.state[piece][key].clone())
        return torch.cat(found)

    def settings(self) -> list[dict[str, Any]]:
        """Each group's settings."""
        return [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]

    def take(
        self,
        settings: Sequence[dict[str, Any]],
        states_of: Callable[[Sequence[Part]], Iterator[Sequence[dict[str, Any]]]],
    ) -> None:
        """Take each group's ``settings`` and new state, with torch's rules for dtypes and devices.

        ``states_of`` is told of all parts, and gives the state of their pieces one part at a time. It isn't used any
        more when the next is asked for, where the parts keep it in columns.
        """
        groups = self.inner.state_dict()["param_groups"]
        both = [here | saved for here, saved in zip(groups, settings, strict=True)]
        self._forget_state()
        self._load_inner({"state": {}, "param_groups": both})
        trial = copy.copy(self.inner)
        parts = list(self._parts.values())
        for part, states in zip(parts, states_of(parts), strict=True):
            with part.open_state(self.inner, dirty=True):
                self.inner.state.update(_as_loaded(trial, part.groups, states))

    def _inner_pieces(self) -> list[PieceParameter]:
        return [piece for group in self.inner.param_groups for piece in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, in the usual form; ``load_state_dict`` takes it on the same rank of an equal world.

        All of it at once in memory, whatever the budget: ``cd.save`` needs no more than a piece.
        """
        self._sync_groups()
        state = self.inner.state_dict()
        pieces = self._inner_pieces()
        for number, values in state["state"].items():
            piece = pieces[number]
            if self._flat_state(piece.flat).in_columns:
                with self._part_of(piece).open_state(self.inner, dirty=False):
                    opened = self.inner.state[piece]
                    state["state"][number] = {
                        key: opened[key].clone() if is_elementwise(value, piece) else value
                        for key, value in values.items()
                    }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave. Raises ValueError for another world's; ``cd.load`` takes those."""
        pieces = self._inner_pieces()
        for index, state in state_dict["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.numel() != pieces[index].numel():
                    raise ValueError(
                        f"{key} of parameter piece {index} has {value.numel()} elements where this rank keeps "
                        f"{pieces[index].numel()}: it was saved by another rank or world; use cd.save and cd.load"
                    )
        self._forget_state()
        self._load_inner(state_dict)
        self._put_state_away()

    def _forget_state(self) -> None:
        for sharded in self._sharded:
            if sharded.keeper is not None:
                sharded.keeper.wait()
        for state in self._flat_states.values():
            state.forget()

    def _load_inner(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        for inner, outer in zip(self.inner.param_groups, self.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})

    def state_bytes(self) -> int:
        """Bytes of optimizer state on this rank."""
        tensors = (value for state in self.inner.state.values() for value in state.values())
        whole = sum(value.nbytes for value in tensors if isinstance(value, Tensor) and not value.is_meta)
        return whole + sum(state.nbytes for state in self._flat_states.values())

    def _sync_groups(self) -> None:
        for inner, outer in zip(self.inner.param_groups, self.param_groups, strict=True):
            inner.update({key: value for key, value in outer.items() if key != "params"})


_Spans = Iterator[tuple[int, int]]


def _early(consume: WeakMethod[Callable[[Flat, _Spans], None]], flat: Flat) -> Callable[[_Spans], None]:
    """What a flat calls for its update in the backward, for as long as the optimizer lives."""

    def call(spans: _Spans) -> None:
        method = consume()
        if method is not None:
            method(flat, spans)

    return call


@dataclass(frozen=True, slots=True)
class _Member:
    """A parameter of the model, and this rank's pieces of it."""

    sharded: Sharded
    flat: Flat
    pieces: list[PieceParameter]

    @property
    def place(self) -> Piece:
        """All pieces as one."""
        first, last = self.pieces[0].place, self.pieces[-1].place
        return Piece(first.index, first.start, last.stop, first.shard_offset)


@dataclass(frozen=True, slots=True)
class StateValues:
    """State with one value for each of ``numel`` elements; ``read`` gives them, 1-D."""

    numel: int
    dtype: torch.dtype
    read: Callable[[], Tensor]


def _as_loaded(
    trial: Optimizer, groups: Sequence[list[PieceParameter]], states: Sequence[dict[str, Any]]
) -> dict[Tensor, dict[str, Any]]:
    """``states`` of the pieces in ``groups`` as a ``load_state_dict`` of ``trial`` makes them."""
    numbers = count()
    trial.state = defaultdict(dict)
    trial.param_groups = [{**g, "params": members} for g, members in zip(trial.param_groups, groups, strict=True)]
    numbered = [{**group, "params": [next(numbers) for _ in group["params"]]} for group in trial.param_groups]
    trial.load_state_dict({"state": {n: s for n, s in enumerate(states) if s}, "param_groups": numbered})
    return dict(trial.state)


def _home(parameter: Any) -> Home:
    home = home_of(parameter)
    if home is None:
        raise ValueError(
            "a parameter given to the optimizer is not a sharded model's: call model = cd.shard(model) first, "
            "then pass model.parameters()"
        )
    if not home.flat.trainable and parameter.requires_grad:
        raise ValueError(
            f"{home.flat.layout.slots[home.index].name} was frozen when the model was sharded: "
            f"unfreeze parameters before cd.shard"
        )
    return home


def normalised(params: Iterable[Any]) -> list[dict[str, Any]]:
    """``params``, in any form that torch's optimizers take, as groups. Raises ValueError where there are none."""
    entries = list(params)
    if not entries:
        raise ValueError("the optimizer got no parameters")
    if not isinstance(entries[0], dict):
        entries = [{"params": entries}]
    return [_normalised_group(entry) for entry in entries]


def _normalised_group(group: dict[str, Any]) -> dict[str, Any]:
    members = group["params"]
    members = [members] if isinstance(members, Tensor) else list(members)
    named = [m[1] if isinstance(m, tuple) else m for m in members]
    return {**group, "params": [p for p in named if p.requires_grad or home_of(p) is None]}


def paged(cls: type[Optimizer], params: Iterable[Any], **options: Any) -> PagedOptimizer:
    """``cls(params, **options)`` for the parameters of a sharded model: any elementwise ``torch.optim`` class."""
    return PagedOptimizer(cls, params, **options)
