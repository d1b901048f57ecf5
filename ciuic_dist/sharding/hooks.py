"""The only file that touches module and autograd hooks.

Forward hooks gather a unit and release it. In backward a unit is gathered when the first gradient of its
outputs comes, found by walking any nested output. It is done when all its parameters' gradients have come (where it
detaches weights: and its input's has as well, or another unit begins); with unused or frozen parameters, when its
input's has. What no hook caught, a callback at the end of the backward does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils import _pytree as pytree

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.foreign import ForeignReads
from ciuic_dist.sharding.sharded import Sharded
from ciuic_dist.sharding.sizes import Sizes
from ciuic_dist.sharding.unit import Unit


def install(sharded: Sharded) -> None:
    """Hook the model's units and parameters.

    Where full forms are gathered, modules that are called from outside the model's own forward gather too.
    """
    hooks = _Hooks(sharded)
    for unit in sharded.units:
        unit.module.register_forward_pre_hook(partial(hooks.before_forward, unit), prepend=True, with_kwargs=True)
        unit.module.register_forward_hook(partial(hooks.after_forward, unit), with_kwargs=False)
        for flat in unit.trainable:
            for index, parameter in enumerate(flat.parameters):
                parameter.register_post_accumulate_grad_hook(_taking(hooks, unit, flat, index))
    if not sharded.units[-1].is_root:  # every parameter belongs to a block
        sharded.module.register_forward_pre_hook(hooks.before_model, prepend=True, with_kwargs=True)
    if sharded.exchange.gathers:
        _gather_on_direct_calls(sharded)
    sharded.module.register_forward_hook(hooks.after_model, always_call=True)


def _taking(hooks: _Hooks, unit: Unit, flat: Flat, index: int) -> Callable[[Tensor], None]:
    """``take_gradient`` by weak references: the garbage collector doesn't see what a parameter's hook holds."""
    taker, of_unit, of_flat = ref(hooks), ref(unit), ref(flat)

    def take(parameter: Tensor) -> None:
        living, unit, flat = taker(), of_unit(), of_flat()
        if living is not None and unit is not None and flat is not None:
            living.take_gradient(unit, flat, index, parameter)

    return take


def _gather_on_direct_calls(sharded: Sharded) -> None:
    owner = {p: unit for unit in sharded.units for flat in unit.flats for p in flat.parameters}
    for module in sharded.module.modules():
        units = {owner[p] for p in module.parameters(recurse=False)}
        for unit in units:
            if module is not unit.module:
                module.register_forward_pre_hook(partial(_gather_directly, sharded, unit))


def _gather_directly(sharded: Sharded, unit: Unit, module: nn.Module, inputs: Any) -> None:
    sharded.gathers.need(unit)


def in_backward() -> bool:
    """Whether the autograd engine is running: a forward is then a recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


class _Hooks:
    def __init__(self, sharded: Sharded) -> None:
        self._sharded = sharded
        self._foreign = ForeignReads(sharded)
        self._graph_task = -1
        self._arrived: dict[Unit, list[Flat]] = {}  # flats whose gradients have all come

    def before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The model's forward begins."""
        if in_backward():
            return
        budgeted = self._sharded.division is not None
        self._sharded.begin_forward(_sizes((args, kwargs)) if budgeted else ())
        self._foreign.start(training=module.training)

    def after_model(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The model's forward is over, or has raised: then it has no output."""
        if not in_backward():
            self._foreign.stop()
            self._sharded.end_forward(raised=output is None)

    def before_forward(self, unit: Unit, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if unit.is_root:
            self.before_model(module, args, kwargs)
        recomputing = in_backward()
        self._sharded.enter(unit, forward=not recomputing)
        if torch.is_grad_enabled() and not recomputing:
            unit.forwards += 1
            first = next((t for t in _tensors((args, kwargs)) if t.requires_grad and t.grad_fn is not None), None)
            if first is not None:
                first.register_hook(partial(self._input_done, unit))
        dtype = self._sharded.compute_dtype
        if dtype is None:
            return None
        cast = partial(_cast, dtype=dtype)
        return pytree.tree_map(cast, args), pytree.tree_map(cast, kwargs)

    def after_forward(self, unit: Unit, module: nn.Module, inputs: Any, output: Any) -> None:
        if in_backward():  # it computes on, and checkpointing may skip this hook anyway: backward releases
            return
        outputs = [t for t in _tensors(output) if t.requires_grad] if torch.is_grad_enabled() else []
        if outputs:
            register_multi_grad_hook(outputs, partial(self._before_backward, unit), mode="any")
        self._sharded.leave(unit, keep=bool(outputs) and unit.is_root)

    def take_gradient(self, unit: Unit, flat: Flat, index: int, parameter: Tensor) -> None:
        self._ensure_begun()
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = None
        if self._sharded.gradients.arrive(flat, index, gradient):
            self._arrived.setdefault(unit, []).append(flat)
            if not unit.detaches:
                self._finish(unit)

    def _before_backward(self, unit: Unit, gradient: Tensor) -> None:
        self._ensure_begun()
        # Autograd runs what was computed later first: nothing of the units after this one is left to run.
        for other in [other for other in self._arrived if other is not unit]:
            self._finish(other)
        unit.backwards += 1
        self._sharded.enter(unit, forward=False)

    def _input_done(self, unit: Unit, gradient: Tensor) -> None:
        """All of this call's gradients have come; of the unit's, if it was called once."""
        once = unit.forwards == 1 and not unit.borrowed and not unit.is_root
        if once and self._sharded.gradients.active:
            for flat in unit.trainable:
                self._sharded.gradients.complete(flat)
            self._sharded.release_after_backward(unit)
        self._finish(unit)

    def _finish(self, unit: Unit) -> None:
        """Gradients that have all come are reduced; the weights may change and go."""
        flats = self._arrived.pop(unit, [])
        for flat in flats:
            self._sharded.gradients.complete(flat)
        if flats and self._sharded.gradients.all_complete(unit.flats):
            self._sharded.release_after_backward(unit)

    def _ensure_begun(self) -> None:
        task = torch._C._current_graph_task_id()
        if not self._sharded.gradients.active:
            self._graph_task = task
            self._arrived.clear()
            self._sharded.begin_backward()
            torch.autograd.Variable._execution_engine.queue_callback(self._sharded.end_backward)
        elif task != self._graph_task:
            raise RuntimeError(
                "a backward runs inside another one, which is not supported: for reentrant activation checkpointing "
                "pass use_reentrant=False to torch.utils.checkpoint (or to gradient_checkpointing_enable); models "
                "that call backward in a backward of their own, such as Reformer, can't be sharded"
            )


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested dicts, lists, tuples, named tuples and dataclasses."""
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor)]


def _sizes(tree: Any) -> Sizes:
    return tuple(tuple(tensor.shape) for tensor in _tensors(tree))


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    for leaf in pytree.tree_leaves(tree):
        fields = getattr(leaf, "__dataclass_fields__", None)
        if fields is None or isinstance(leaf, type):
            found.append(leaf)
        else:
            found += _leaves([getattr(leaf, name) for name in fields])
    return found


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
