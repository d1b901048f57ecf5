"""Any elementwise torch optimizer, on the pieces of the parameters that this rank owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ciuic_dist.optim.elementwise import check_elementwise
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.layout import Piece
from ciuic_dist.sharding.registry import home_of
from ciuic_dist.sharding.sharded import Sharded


class PagedOptimizer(Optimizer):
    """Steps an inner optimizer whose parameters are this rank's pieces, 1-D views of the masters.

    ``param_groups`` hold the model's own parameters, for schedulers and for ``zero_grad``; their other
    entries are handed to the inner optimizer at each step.
    """

    def __init__(self, cls: type[Optimizer], params: Iterable[Any], **options: Any) -> None:
        """``cls(params, **options)`` as it would be for a model that isn't sharded.

        Raises ValueError for parameters that are no sharded model's, or frozen when they were sharded, and
        for an optimizer that looks at more than one element at a time.
        """
        check_elementwise(cls, options)
        groups = normalised(params)
        self._members = {id(p): _member(p) for group in groups for p in group["params"]}
        self._sharded: list[Sharded] = []
        inner_groups = [{**group, "params": self._pieces_of(group["params"])} for group in groups]
        self.inner = cls(inner_groups, **options)
        super().__init__(groups, dict(self.inner.defaults))
        self._serve(sharded for sharded, _, _ in self._members.values())

    def _pieces_of(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        return [piece for p in parameters for piece in self._members[id(p)][2]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update this rank's pieces from the reduced gradients; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for sharded in self._sharded:
            sharded.update_begins()
        self._hand_over()
        self.inner.step()
        for piece in self._pieces_of(p for group in self.param_groups for p in group["params"]):
            piece.grad = None
        for sharded in self._sharded:
            sharded.update_ends()
        return loss

    def _hand_over(self) -> None:
        """Give the inner optimizer the groups' present settings and the gradients there are."""
        self._sync_groups()
        for _, flat, pieces in self._members.values():
            for piece in pieces:
                piece.grad = flat.gradient_of(piece.place)

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
        fresh = {id(p): _member(p) for p in group["params"] if id(p) not in self._members}
        super().add_param_group(group)
        if len(self.param_groups) > len(self.inner.param_groups):  # not so in construction
            self._members |= fresh
            self.inner.add_param_group({**self.param_groups[-1], "params": self._pieces_of(group["params"])})
            self._serve(sharded for sharded, _, _ in fresh.values())

    def _serve(self, models: Iterable[Sharded]) -> None:
        self._sharded = list(dict.fromkeys([*self._sharded, *models]))
        for sharded in self._sharded:
            sharded.optimizers.add(self)

    def piece_states(self) -> list[tuple[Flat, Piece, dict[str, Any]]]:
        """For each piece on this rank: its flat, its place and the inner optimizer's state."""
        return [
            (flat, piece.place, self.inner.state.get(piece, {}))
            for _, flat, pieces in self._members.values()
            for piece in pieces
        ]

    def settings(self) -> list[dict[str, Any]]:
        """Each group's settings."""
        return [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]

    def take(self, states: list[dict[str, Any]], settings: list[dict[str, Any]]) -> None:
        """Take back what ``piece_states`` and ``settings`` gave, with torch's rules for dtypes and devices."""
        groups = self.state_dict()["param_groups"]
        self.load_state_dict(
            {
                "state": {index: state for index, state in enumerate(states) if state},
                "param_groups": [here | saved for here, saved in zip(groups, settings, strict=True)],
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, in the usual form; ``load_state_dict`` takes it on the same rank of an equal world."""
        self._sync_groups()
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave. Raises ValueError for another world's; ``cd.load`` takes those."""
        pieces = [piece for group in self.inner.param_groups for piece in group["params"]]
        for index, state in state_dict["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.numel() != pieces[index].numel():
                    raise ValueError(
                        f"{key} of parameter piece {index} has {value.numel()} elements where this rank keeps "
                        f"{pieces[index].numel()}: it was saved by another rank or world; use cd.save and cd.load"
                    )
        self.inner.load_state_dict(state_dict)
        for inner, outer in zip(self.inner.param_groups, self.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})

    def state_bytes(self) -> int:
        """Bytes of optimizer state on this rank."""
        tensors = (value for state in self.inner.state.values() for value in state.values())
        return sum(value.nbytes for value in tensors if isinstance(value, Tensor))

    def _sync_groups(self) -> None:
        for inner, outer in zip(self.inner.param_groups, self.param_groups, strict=True):
            inner.update({key: value for key, value in outer.items() if key != "params"})


class PieceParameter(nn.Parameter):
    """A piece as the inner optimizer sees it: a 1-D view of the master, which knows its place."""

    place: Piece


def _member(parameter: Any) -> tuple[Sharded, Flat, list[PieceParameter]]:
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
    pieces = []
    for place in home.flat.pieces():
        if place.index == home.index:
            piece = PieceParameter(
                home.flat.master[place.shard_offset : place.shard_offset + place.numel], requires_grad=True
            )
            piece.place = place
            pieces.append(piece)
    return home.sharded, home.flat, pieces


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
