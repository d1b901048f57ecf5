"""Blocks that are alike cost alike: the first of each kind runs, for the others its outputs' shapes are enough."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import compress
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ciuic_dist.estimate.forms import Form

_POSITION = ("idx", "index", "_id")
"""How attributes end that say which of the blocks it is."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """An output: one of the inputs, a value that is no tensor, or a tensor of this form."""

    given: int | None = None
    value: Any = None
    form: Form | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    unit: int
    saved: tuple[bool, ...]
    """Which of what it was given is kept for the backward."""
    leaves: tuple[_Leaf, ...]
    tree: pytree.TreeSpec


class Twins:
    """Takes the place of the forwards of ``modules`` until ``remove``; values must not matter."""

    def __init__(self, modules: Sequence[nn.Module], is_saved: Callable[[Tensor], bool]) -> None:
        """``is_saved``: whether an input is kept for the backward already, so that keeping it costs nothing more."""
        self._is_saved = is_saved
        self._runs: dict[Hashable, _Run] = {}
        self._models: dict[int, int] = {}
        self._replaced: list[tuple[nn.Module, Any]] = []
        for unit, module in enumerate(modules):
            structure = _structure(module)
            if structure is not None:
                self._replaced.append((module, vars(module).get("forward")))
                module.forward = self._stand_in(unit, module.forward, structure)

    def model_of(self, unit: int) -> int | None:
        """The unit that was run in place of this one."""
        return self._models.get(unit)

    def remove(self) -> None:
        """Give the modules their forwards back."""
        for module, own in self._replaced:
            if own is None:
                del module.forward
            else:
                module.forward = own

    def _stand_in(self, unit: int, forward: Callable[..., Any], structure: Hashable) -> Callable[..., Any]:
        runs = 0

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal runs
            runs += 1
            given, tree = pytree.tree_flatten((args, kwargs))
            described = tuple(map(_described, given))
            key = (structure, str(tree), described, self._saved(given), torch.is_grad_enabled())
            if runs > 1 or None in described:  # a unit that runs twice, or is given what may remember
                return forward(*args, **kwargs)
            if key in self._runs and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given):
                self._models[unit] = self._runs[key].unit
                return _imitate(self._runs[key], given)
            out = forward(*args, **kwargs)
            made, shape = pytree.tree_flatten(out)
            if all(_described(leaf) is not None for leaf in made):
                self._runs[key] = _Run(unit, self._saved(given), tuple(_leaf(leaf, given) for leaf in made), shape)
            return out

        return run

    def _saved(self, given: Sequence[Any]) -> tuple[bool, ...]:
        return tuple(isinstance(leaf, Tensor) and self._is_saved(leaf) for leaf in given)


def _leaf(made: Any, given: Sequence[Any]) -> _Leaf:
    if not isinstance(made, Tensor):
        return _Leaf(value=made)
    same = next((at for at, tensor in enumerate(given) if tensor is made), None)
    return _Leaf(form=Form.of(made)) if same is None else _Leaf(given=same)


def _imitate(run: _Run, given: Sequence[Any]) -> Any:
    learning = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given]
    inputs, saved = list(compress(given, learning)), list(compress(run.saved, learning))
    forms = [leaf.form for leaf in run.leaves if leaf.form is not None and leaf.form.requires_grad]
    learned = iter(_Imitation.apply(forms, saved, *inputs) if forms else ())  # type: ignore[no-untyped-call]

    def leaf_of(leaf: _Leaf) -> Any:
        if leaf.given is not None:
            return given[leaf.given]
        if leaf.form is None:
            return leaf.value
        return next(learned) if leaf.form.requires_grad else leaf.form.make()

    return pytree.tree_unflatten([leaf_of(leaf) for leaf in run.leaves], run.tree)


class _Imitation(torch.autograd.Function):
    """Makes outputs in the forward and gradients in the backward, of the right forms; keeps what is saved till then."""

    @staticmethod
    def forward(ctx: Any, forms: Sequence[Form], saved: Sequence[bool], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*compress(inputs, saved))
        ctx.inputs = [Form.of(tensor) for tensor in inputs]
        return tuple(form.make() for form in forms)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(form.make() for form in ctx.inputs)


def _structure(module: nn.Module) -> Hashable | None:
    """Equal for modules that compute alike; None where a forward may run more than once (checkpointing)."""
    if any(getattr(inner, "gradient_checkpointing", False) for inner in module.modules()):
        return None
    return tuple(
        (
            name,
            type(inner),
            tuple(sorted(_settings(inner).items())),
            tuple((key, _described(value)) for key, value in inner._parameters.items()),
            tuple((key, _described(value)) for key, value in inner._buffers.items()),
        )
        for name, inner in module.named_modules()
    )


def _settings(module: nn.Module) -> dict[str, Hashable]:
    told = {key: _told(value) for key, value in vars(module).items() if not key.endswith(_POSITION)}
    return {key: value for key, value in told.items() if value is not None}


def _told(value: Any) -> Hashable | None:
    """What an attribute says of how a module computes; None where that can't be told."""
    if isinstance(value, list | tuple):
        return tuple(map(_told, value))
    return value if isinstance(value, bool | int | float | str | FunctionType | BuiltinFunctionType) else None


def _described(value: Any) -> Hashable | None:
    """What of an input or an output its shape depends on; None where that can't be told."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), str(value.dtype), value.requires_grad
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, value
    return None
