"""The only file that touches module and autograd hooks.

Forward hooks gather a unit and release it. In backward a unit is gathered when the first gradient of its
outputs comes, found by walking any nested output, and is done when all its parameters' gradients have come
or, for units with unused or frozen parameters, when the gradient of its input has. What no hook caught,
a callback at the end of the backward does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils import _pytree as pytree

from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.foreign import ForeignReads
from ciuic_dist.sharding.sharded import Sharded
from ciuic_dist.sharding.unit import Unit


def install(sharded: Sharded, *, gather_direct_calls: bool) -> None:
    """Hook the model's units and parameters.

    ``gather_direct_calls``: full forms have memory only while gathered, so modules that are called from
    outside the model's own forward have to gather their unit.
    """
    hooks = _Hooks(sharded)
    for unit in sharded.units:
        unit.module.register_forward_pre_hook(partial(hooks.before_forward, unit), prepend=True, with_kwargs=True)
        unit.module.register_forward_hook(partial(hooks.after_forward, unit), with_kwargs=False)
        for flat in unit.trainable:
            for index, parameter in enumerate(flat.parameters):
                parameter.register_post_accumulate_grad_hook(partial(hooks.take_gradient, unit, flat, index))
    if sharded.units[-1].module is not sharded.module:  # every parameter belongs to a block
        sharded.module.register_forward_pre_hook(hooks.before_model, prepend=True)
    if gather_direct_calls:
        _gather_on_direct_calls(sharded)
    sharded.module.register_forward_hook(hooks.after_model, always_call=True)


def _gather_on_direct_calls(sharded: Sharded) -> None:
    owner = {p: unit for unit in sharded.units for flat in unit.flats for p in flat.parameters}
    for module in sharded.module.modules():
        units = {owner[p] for p in module.parameters(recurse=False)}
        for unit in units:
            if module is not unit.module:
                module.register_forward_pre_hook(partial(_gather_directly, sharded, unit))


def _gather_directly(sharded: Sharded, unit: Unit, module: nn.Module, inputs: Any) -> None:
    sharded.gather_alone(unit)


def in_backward() -> bool:
    """Whether the autograd engine is running: a forward is then a recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


class _Hooks:
    def __init__(self, sharded: Sharded) -> None:
        self._sharded = sharded
        self._foreign = ForeignReads(sharded)
        self._graph_task = -1

    def before_model(self, module: nn.Module, inputs: Any) -> None:
        """The model's forward begins."""
        if in_backward():
            return
        if self._sharded.gradients.active:
            self._sharded.gradients.abandon()  # a backward that raised
        self._sharded.check_versions()
        self._foreign.start(training=module.training)

    def after_model(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The model's forward is over, or has raised."""
        if not in_backward():
            self._foreign.stop()

    def before_forward(self, unit: Unit, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if unit.module is self._sharded.module:
            self.before_model(module, args)
        recomputing = in_backward()
        phase = "recompute" if recomputing else "forward"
        self._sharded.enter(unit, phase)
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
        self._sharded.leave(unit, keep=bool(outputs) and unit.module is self._sharded.module)

    def take_gradient(self, unit: Unit, flat: Flat, index: int, parameter: Tensor) -> None:
        self._ensure_begun()
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = None
        self._sharded.gradients.arrive(flat, index, gradient)
        if self._sharded.gradients.all_complete(unit.flats):
            self._sharded.release_after_backward(unit)

    def _before_backward(self, unit: Unit, gradient: Tensor) -> None:
        self._ensure_begun()
        self._sharded.enter(unit, "backward")

    def _input_done(self, unit: Unit, gradient: Tensor) -> None:
        """All of this call's gradients have come; of the unit's, if it was called once."""
        once = unit.forwards == 1 and not unit.borrowed and unit.module is not self._sharded.module
        if once and self._sharded.gradients.active:
            for flat in unit.trainable:
                self._sharded.gradients.complete(flat)
            self._sharded.release_after_backward(unit)

    def _ensure_begun(self) -> None:
        task = torch._C._current_graph_task_id()
        if not self._sharded.gradients.active:
            self._graph_task = task
            self._sharded.gradients.begin(sync=self._sharded.sync)
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
        elif task != self._graph_task:
            raise RuntimeError(
                "a backward runs inside another one: reentrant activation checkpointing is not supported, "
                "pass use_reentrant=False to torch.utils.checkpoint (or to gradient_checkpointing_enable)"
            )

    def _end_backward(self) -> None:
        self._sharded.gradients.finish()
        for unit in self._sharded.units:
            unit.forwards = 0
        self._sharded.release_all()


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested dicts, lists, tuples, named tuples and dataclasses."""
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor)]


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
