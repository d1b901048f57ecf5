"""Measures a model's forward and backward, unit by unit, without computing. The only planner that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ciuic_dist.planning.profile import Pass, Profile, UnitProfile

_aten = torch.ops.aten
_CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
"""Flash attention on the CPU counts like the one on GPUs, causal masks not deducted."""


@dataclass(slots=True)
class _Pass:
    unit: int
    backward: bool
    flops: float = 0.0
    saved: int = 0
    inputs: int = 0
    weights: bool = False
    """Whether an operation took a parameter of the unit as it is."""


def profile(model: nn.Module, units: Mapping[str, nn.Module], loss: Callable[[], Tensor]) -> Profile:
    """Run ``loss()`` and its backward and attribute FLOPs and saved bytes to ``units``, by name, and the root.

    Build the model and its inputs under `torch._subclasses.FakeTensorMode`, and call this under it, and nothing is
    allocated or computed; on the meta device attention would count as if it were not fused. Parameters that belong
    to no unit or to several are the root's, which comes last. The gradients of the parameters are not kept.
    """
    meter = _Meter(model, units)
    with meter, saved_tensors_hooks(meter.pack, lambda saved: saved):
        meter.enter(meter.root, backward=False)
        value = loss()
        meter.enter(meter.root, backward=True)
        value.backward()
    meter.remove()
    for parameter in model.parameters():
        parameter.grad = None
    return Profile(meter.units, tuple(meter.kept()))


class _Meter(TorchDispatchMode):
    """Knows which unit computes, and charges it."""

    def __init__(self, model: nn.Module, units: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotations there
        self.root = len(units)
        owner: dict[nn.Parameter, int] = {}
        for index, module in enumerate(units.values()):
            for parameter in module.parameters():
                owner[parameter] = index if owner.get(parameter, index) == index else self.root
        counts = [0] * (len(units) + 1)
        for parameter in model.parameters():
            counts[owner.setdefault(parameter, self.root)] += parameter.numel()
        self.units = tuple(UnitProfile(name, count) for name, count in zip([*units, "root"], counts, strict=True))
        self._owner = {id(parameter): unit for parameter, unit in owner.items()}
        self._stored = {_storage(parameter) for parameter in model.parameters()}
        self._inputs: list[Tensor] = []
        """Of the unit that computes."""
        self._entered: set[int] = set()
        self._passes: list[_Pass] = []
        self._hooks = [handle for index, module in enumerate(units.values()) for handle in self._hook(index, module)]

    def enter(self, unit: int, *, backward: bool) -> None:
        """From now on ``unit`` computes."""
        if not self._passes or (self._passes[-1].unit, self._passes[-1].backward) != (unit, backward):
            self._passes.append(_Pass(unit, backward))

    def kept(self) -> Iterable[Pass]:
        """Passes that compute with parameters; between two units the root often does nothing."""
        turn = next(index for index, p in enumerate(self._passes) if p.backward)
        ends = {0, turn - 1, turn, len(self._passes) - 1}
        for index, p in enumerate(self._passes):
            if p.unit != self.root or p.flops or p.weights or index in ends:
                yield Pass(p.unit, p.backward, p.flops, p.saved, p.inputs)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._hooks:
            handle.remove()

    def pack(self, tensor: Tensor) -> Tensor:
        """What autograd saves is charged once, parameters not at all."""
        if _storage(tensor) not in self._stored:
            self._stored.add(_storage(tensor))
            self._passes[-1].saved += tensor.untyped_storage().nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Charge the FLOPs of ``func`` to the current pass."""
        out = func(*args, **(kwargs or {}))
        packet = _CPU_ATTENTION.get(func._overloadpacket, func._overloadpacket)
        if packet in flop_registry:
            self._passes[-1].flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif packet is _aten._grouped_mm:
            self._passes[-1].flops += 2 * args[0].numel() * args[1].shape[-1]
        unit = self._passes[-1].unit
        self._passes[-1].weights |= any(self._owner.get(id(argument)) == unit for argument in args)
        return out

    def _hook(self, index: int, module: nn.Module) -> Iterable[Any]:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.enter(index, backward=False)
            self._inputs = _tensors((args, kwargs))
            for tensor in self._inputs:
                if _storage(tensor) not in self._entered:
                    self._entered.add(_storage(tensor))
                    self._passes[-1].inputs += tensor.untyped_storage().nbytes()
                tensor.register_hook(lambda _: self._leave(index))

        def after(_: nn.Module, args: Any, out: Any) -> None:
            self.enter(self.root, backward=False)
            handed_on = {id(tensor) for tensor in self._inputs}
            for tensor in (tensor for tensor in _tensors(out) if id(tensor) not in handed_on):
                tensor.register_hook(lambda _: self.enter(index, backward=True))

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _leave(self, unit: int) -> None:
        """The backward of ``unit`` has reached its input; if that is another unit's output, its hook came first."""
        if self._passes[-1].unit == unit:
            self.enter(self.root, backward=True)


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of ``tree`` through which gradients flow."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
