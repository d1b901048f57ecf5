"""How long a unit takes as a whole: its operators, and the modules, views and Python around them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ciuic_dist.estimate.forms import Form

_RUNS: Final = 3
"""After one that finds memory."""
_PLAIN: Final = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class Whole:
    """A unit, and what it has and is given in one forward, with forms in place of tensors."""

    module: nn.Module
    held: Mapping[str, Form]
    given: tuple[tuple[Any, ...], dict[str, Any]]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Whole | None:
        """As it is about to run; None where it is given what can't be made again."""
        leaves = pytree.tree_leaves((args, kwargs))
        if not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
            return None
        held = {name: Form.of(tensor) for name, tensor in _tensors(module)}
        return cls(module, held, pytree.tree_map_only(Tensor, Form.of, (args, kwargs)))

    def name(self, calls: Mapping[str, int]) -> str:
        """The same for what takes equally long; ``calls``: how often its forward calls each operator."""
        told = repr((sorted(calls.items()), dict(self.held), self.given))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def seconds(self) -> tuple[float, float]:
        """Of the forward and of the backward here, with values of no consequence; allocates what they take.

        Zeros where it doesn't run with such values.
        """
        try:
            forwards, backwards = zip(*self._runs(), strict=True)
        except Exception:  # noqa: BLE001 - whatever a model's code raises
            return 0.0, 0.0
        return median(forwards[1:]), median(backwards[1:])

    def _runs(self) -> Iterator[tuple[float, float]]:
        held = {name: _made(form) for name, form in self.held.items()}
        for _ in range(1 + _RUNS):
            args, kwargs = pytree.tree_map_only(Form, _made, self.given)
            began = time.perf_counter()
            out = functional_call(self.module, held, args, kwargs)
            forward = time.perf_counter() - began
            yield forward, _backward(out, (args, kwargs, held))


def _backward(out: Any, given: Any) -> float:
    made = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad]
    learning = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor) and leaf.requires_grad]
    gradients = [torch.ones_like(leaf) for leaf in made]
    began = time.perf_counter()
    if made:
        torch.autograd.grad(made, learning, gradients, allow_unused=True)
    return time.perf_counter() - began


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _made(form: Form) -> Tensor:
    return form.filled().requires_grad_(form.requires_grad)
