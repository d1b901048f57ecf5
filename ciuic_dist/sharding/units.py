"""Which modules are gathered and released together: the model's repeated blocks, and the root for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

UnitRule = Collection[str] | Callable[[nn.Module], bool] | None


@dataclass(slots=True)
class UnitSpec:
    """A unit's module and the parameters that belong to it, by name; the root's name is empty."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


def find_units(model: nn.Module, rule: UnitRule = None) -> list[UnitSpec]:
    """The units of ``model`` in the order of its modules, the root last.

    ``rule`` is a collection of class names, a predicate, or None for the repeated blocks. A parameter that
    several units use belongs to the root. Raises ValueError where ``rule`` names a class that the model lacks.
    """
    blocks = dict(_outermost(model, _predicate(model, rule)))
    units = [*(UnitSpec(name, module) for name, module in blocks.items()), UnitSpec("", model)]
    owner = owners(model, list(blocks.values()))
    for name, parameter in model.named_parameters():
        units[owner[parameter]].parameters[name] = parameter
    return [unit for unit in units if unit.parameters]


def owners(model: nn.Module, units: Sequence[nn.Module]) -> dict[nn.Parameter, int]:
    """Of each parameter the index of its unit; that of the root, which comes last, for what is used outside of it."""
    root = len(units)
    owner: dict[nn.Parameter, int] = {}
    for index, unit in enumerate(units):
        for parameter in unit.parameters():
            owner[parameter] = index if owner.get(parameter, index) == index else root
    inside = {id(module) for unit in units for module in unit.modules()}
    for module in model.modules():
        if id(module) not in inside:
            owner |= dict.fromkeys(module.parameters(recurse=False), root)
    return owner


def _predicate(model: nn.Module, rule: UnitRule) -> Callable[[nn.Module], bool]:
    if callable(rule):
        return rule
    if rule is None:
        classes = _declared(model)
        if classes:
            return lambda module: type(module).__name__ in classes
        repeated = {id(module) for module in _repeated(model)}
        return lambda module: id(module) in repeated
    names = {rule} if isinstance(rule, str) else set(rule)
    missing = names - {type(module).__name__ for module in model.modules()}
    if missing:
        present = sorted({type(module).__name__ for module in model.modules()})
        raise ValueError(f"units={sorted(missing)} are no classes of this model; it has {', '.join(present)}")
    return lambda module: type(module).__name__ in names


def _outermost(model: nn.Module, is_unit: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    taken: set[int] = set()
    for name, module in model.named_modules():
        if module is model or id(module) in taken or not is_unit(module):
            continue
        if any(True for _ in module.parameters()):
            taken.update(id(inner) for inner in module.modules())
            yield name, module


def _declared(model: nn.Module) -> set[str]:
    """Block classes that the model's author declared not to be split, where they occur more than once."""
    declared = {name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())}
    counts = Counter(type(module).__name__ for module in model.modules())
    return {name for name in declared if counts[name] > 1}


def _repeated(model: nn.Module) -> Iterator[nn.Module]:
    """Children of one class that stand side by side in a list."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            counts = Counter(type(child) for child in module)
            yield from (child for child in module if counts[type(child)] > 1)
