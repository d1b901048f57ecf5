"""Measures a model's forward and backward, unit by unit, without computing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ciuic_dist.estimate.attention import FusedAttention
from ciuic_dist.estimate.calls import Call
from ciuic_dist.estimate.operators import Cost, cost_of
from ciuic_dist.estimate.twins import Twins
from ciuic_dist.estimate.whole import Whole
from ciuic_dist.memory.live import LiveBytes, Storages
from ciuic_dist.planning.profile import Pass, Profile, UnitProfile
from ciuic_dist.sharding.units import owners

Calls = Counter[Call]
"""How often each operator is called."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass does, and of which unit, if it is all of that unit's forward or backward."""

    calls: Calls
    unit: Whole | None = None
    name: str = ""
    """Equal for units that take equally long."""


def profile(
    model: nn.Module, units: Mapping[str, nn.Module], loss: Callable[[], Tensor], *, fused_attention: bool = False
) -> Profile:
    """What `trace` finds, without what is to be timed."""
    return trace(model, units, loss, fused_attention=fused_attention)[0]


def trace(
    model: nn.Module, units: Mapping[str, nn.Module], loss: Callable[[], Tensor], *, fused_attention: bool = False
) -> tuple[Profile, tuple[Work, ...]]:
    """Run ``loss()`` and its backward and attribute what they cost to ``units``, by name, and the root.

    With a model on meta, called under `phantom`, nothing is allocated or computed. Units that are alike and get alike
    inputs are run once. Parameters that are used outside of one unit are the root's, which comes last. The
    gradients of the parameters are not kept. The second value tells what each pass of the first does.

    ``fused_attention``: attention takes one kernel whatever its shapes, as on GPUs; else where CPUs have one.
    """
    meter = _Meter(model, units)
    with ExitStack() as stack:
        stack.callback(meter.remove)
        stack.enter_context(FusedAttention(meter.charge, everywhere=fused_attention))
        stack.enter_context(meter.live)
        stack.enter_context(meter)
        stack.enter_context(saved_tensors_hooks(meter.pack, lambda saved: saved))
        meter.enter(meter.root, backward=False)
        value = loss()
        meter.enter(meter.root, backward=True)
        value.backward()
        meter.end()
    passes, works = zip(*meter.kept(), strict=True)
    return Profile(meter.units, passes), works


@dataclass(slots=True)
class _Pass:
    unit: int
    backward: bool
    start: int = 0
    saved: int = 0
    inputs: int = 0
    remade: int = 0
    flops: float = 0.0
    streamed: float = 0.0
    touched: float = 0.0
    ops: int = 0
    above: int = 0
    net: int = 0
    calls: Calls = field(default_factory=Counter)
    reads: set[int] = field(default_factory=set)


class _Meter(TorchDispatchMode):
    """Knows which unit computes, and charges it."""

    def __init__(self, model: nn.Module, units: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotations there
        self.root = len(units)
        self.live = LiveBytes(phantom=True)
        counts, frozen = Counter[int](), Counter[int]()
        self._owners: dict[int, int] = {}
        """The unit that what a storage holds belongs to."""
        for parameter, unit in owners(model, list(units.values())).items():
            self._owners[parameter.untyped_storage()._cdata] = unit
            counts[unit] += parameter.numel()
            frozen[unit] += 0 if parameter.requires_grad else parameter.numel()
        self.units = tuple(UnitProfile(name, counts[i], frozen[i]) for i, name in enumerate([*units, "root"]))
        self._stored = Storages(model.parameters())
        self._inputs: list[Tensor] = []
        """Of the unit that computes."""
        self._entered = Storages()
        self._passes: list[_Pass] = []
        self._wholes: dict[int, Whole | None] = {}
        self._twins = Twins(list(units.values()), lambda tensor: tensor in self._stored)
        self._hooks = [handle for index, module in enumerate(units.values()) for handle in self._hook(index, module)]
        self._hooks += [p.register_post_accumulate_grad_hook(_drop) for p in model.parameters() if p.requires_grad]

    def enter(self, unit: int, *, backward: bool) -> None:
        """From now on ``unit`` computes; what a backward computes again is a part of it."""
        backward |= bool(self._passes) and self._passes[-1].backward
        if not self._passes or (self._passes[-1].unit, self._passes[-1].backward) != (unit, backward):
            now = self.end()
            self._passes.append(_Pass(unit, backward, start=now))

    def end(self) -> int:
        """The current pass is over; returns the bytes alive."""
        now = self.live.now
        if self._passes:
            current = self._passes[-1]
            current.above = max(current.above, self.live.peak - current.start)
            current.net = now - current.start
        self.live.peak = now
        return now

    def kept(self) -> Iterator[tuple[Pass, Work]]:
        """Passes that compute; between two units the root often does nothing."""
        turn = next(index for index, p in enumerate(self._passes) if p.backward)
        ends = {0, turn - 1, turn, len(self._passes) - 1}
        carried = 0
        names = self._names()
        for index, p in enumerate(self._like_their_twins()):
            if p.unit != self.root or p.ops or index in ends:
                costs = {name: getattr(p, name) for name in ("saved", "inputs", "remade", "streamed", "touched", "ops")}
                costs |= {"above": p.above + carried, "net": p.net + carried}
                made = Pass(p.unit, p.backward, p.flops, **costs, reads=tuple(sorted(p.reads - {p.unit})))
                name = names.get(p.unit)
                yield made, Work(p.calls, self._wholes[p.unit], name) if name else Work(p.calls)
                carried = 0
            else:
                carried += p.net

    def _names(self) -> dict[int, str]:
        """Of the units that can be timed as a whole: those whose forward and backward are one pass each."""
        passes = list(self._like_their_twins())
        times = Counter(p.unit for p in passes)
        found = {}
        for p in passes:
            whole = self._wholes.get(p.unit)
            if whole is not None and not p.backward and times[p.unit] == len((False, True)):
                found[p.unit] = whole.name({str(call): count for call, count in p.calls.items()})
        return found

    def _like_their_twins(self) -> Iterator[_Pass]:
        """A unit that wasn't run costs what the one costs that is like it."""
        models: dict[tuple[int, bool], list[_Pass]] = {}
        for p in self._passes:
            models.setdefault((p.unit, p.backward), []).append(p)
        met: dict[tuple[int, bool], int] = {}
        for p in self._passes:
            kind = (p.unit, p.backward)
            number = met[kind] = met.get(kind, -1) + 1
            like = self._twins.model_of(p.unit)
            if like is None:
                yield p
            else:
                seen = models[like, p.backward]
                one = seen[min(number, len(seen) - 1)]  # it may run more often
                yield replace(one, unit=p.unit, reads=one.reads - {like})

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._twins.remove()
        for handle in self._hooks:
            handle.remove()

    def pack(self, tensor: Tensor) -> Tensor:
        """What autograd saves is charged once, parameters not at all."""
        if tensor not in self._stored:
            self._stored.add(tensor)
            nbytes = tensor.untyped_storage().nbytes()
            self._passes[-1].saved += nbytes
            self._passes[-1].remade += 0 if tensor in self._entered else nbytes
        return tensor

    def charge(self, cost: Cost, call: Call | None) -> None:
        """To the current pass."""
        current = self._passes[-1]
        if call is not None:
            current.calls[call] += 1
        current.flops += cost.flops
        current.ops += 1
        if cost.flops:
            current.streamed += cost.nbytes
        else:
            current.touched += cost.nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Charge what ``func`` costs to the current pass."""
        out = func(*args, **(kwargs or {}))
        cost = cost_of(func, args, kwargs or {}, out)
        if cost is not None:
            self.charge(cost, Call.of(func, args, kwargs or {}))
            self._passes[-1].reads.update(self._read(args, kwargs))
        return out

    def _read(self, *given: Any) -> Iterator[int]:
        """The units whose weights are among what an operator is given."""
        for leaf in pytree.tree_leaves(given):
            if isinstance(leaf, Tensor) and (unit := self._owners.get(leaf.untyped_storage()._cdata)) is not None:
                yield unit

    def _hook(self, index: int, module: nn.Module) -> Iterator[Any]:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.enter(index, backward=False)
            if index not in self._wholes:
                self._wholes[index] = Whole.of(module, args, kwargs)
            self._inputs = _tensors((args, kwargs))
            for tensor in self._inputs:
                if tensor not in self._entered:
                    self._entered.add(tensor)
                    self._passes[-1].inputs += tensor.untyped_storage().nbytes()
            # Autograd goes to leaves as soon as it can.
            made = [tensor for tensor in self._inputs if not tensor.is_leaf]
            for tensor in made or self._inputs:
                tensor.register_hook(lambda _: self._leave(index))

        def after(_: nn.Module, args: Any, out: Any) -> None:
            self.enter(self.root, backward=False)
            handed_on = {id(tensor) for tensor in self._inputs}
            for tensor in (tensor for tensor in _tensors(out) if id(tensor) not in handed_on):
                tensor.register_hook(lambda _: self.enter(index, backward=True))
            self._inputs = []  # they may be freed now

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _leave(self, unit: int) -> None:
        """The backward of ``unit`` has reached its input; if that is another unit's output, its hook came first."""
        if self._passes[-1].unit == unit:
            self.enter(self.root, backward=True)


def _drop(parameter: Tensor) -> None:
    """Where gradients go is not the model's affair."""
    parameter.grad = None


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of ``tree`` through which gradients flow."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]
