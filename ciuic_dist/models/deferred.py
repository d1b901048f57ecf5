"""Models on the meta device whose values are known as a recipe, made real a parameter at a time.

``record`` runs a constructor on meta and keeps what it did; ``Recipe.replay`` does that again on
the CPU, in the same order with the same random numbers, holding about one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ciuic_dist.models.on_meta import OnMeta
from ciuic_dist.models.recording import DeferredError, Recorder, whole_draws
from ciuic_dist.models.replay import Program, kept_random_state

Emit = Callable[[Tensor, Tensor], None]
Module = TypeVar("Module", bound=nn.Module)


class Recipe(Protocol):
    """How a module's values come to be."""

    def replay(self, emit: Emit) -> None:
        """Call ``emit(deferred, real)`` once for each parameter and buffer, when its value is final.

        ``deferred`` is the very tensor that the module holds, ``real`` its value on the CPU, same
        shape and dtype, without gradient. Tensors that share a storage share it here too.
        """
        ...


_recipes: WeakKeyDictionary[nn.Module, Recipe] = WeakKeyDictionary()


def record(make: Callable[[], Module], seed: int) -> Module:
    """Run ``make`` on the meta device; its module's values are those of a plain run after ``seed``.

    Its recipe gives, bit for bit, the values of ``torch.manual_seed(seed); make()`` on the CPU.
    Tensors that ``make`` puts on the CPU by name stay there. The caller's random state is kept.
    Raises DeferredError where ``make`` reads values that exist only when it runs for real.
    """
    recorder = Recorder()
    with kept_random_state(), whole_draws(recorder), recorder, OnMeta():
        module = make()
    tensors = list(distinct_tensors(module))
    places = [(tensor, recorder.view(tensor)) for tensor in tensors]
    return defer(module, Program(recorder.calls, places, seed))


def defer(module: Module, recipe: Recipe) -> Module:
    """Say that ``recipe`` makes the values of ``module``; the module itself, for chaining."""
    _recipes[module] = recipe
    return module


def recipe_of(module: nn.Module) -> Recipe | None:
    """The recipe of a root module that still waits for its values."""
    return _recipes.get(module)


def materialize(module: Module) -> Module:
    """Make every parameter and buffer real on the CPU, in place; returns the module.

    Ties, ``requires_grad``, attributes and types of parameters stay. A module that has no recipe is
    returned as it is; DeferredError if it is on meta all the same.
    """
    recipe = _recipes.pop(module, None)
    if recipe is not None:
        owners = _owners(module)

        def place(deferred: Tensor, real: Tensor) -> None:
            replacement = _like(deferred, real)
            for owner, name in owners.get(id(deferred), ()):
                setattr(owner, name, replacement)  # not through the dicts: RNNs keep lists

        recipe.replay(place)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise DeferredError(f"{name} is on meta and nothing says how to make its values")
    return module


def distinct_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Each parameter and buffer object once, tied ones too."""
    yield from module.parameters()
    yield from module.buffers()


def _owners(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            owners.setdefault(id(tensor), []).append((owner, name))
    return owners


def _like(deferred: Tensor, real: Tensor) -> Tensor:
    tensor = real.as_subclass(type(deferred))
    tensor.requires_grad_(deferred.requires_grad)
    vars(tensor).update(vars(deferred))
    return tensor
