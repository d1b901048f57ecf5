"""A constructor runs on the meta device and every operation on its tensors is written down.

Storages, not tensors, are what operations are keyed by: views, parameters made of tensors and
``.data`` swaps then need no care of their own, because each is a place in a storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_META = torch.device("meta")
_CPU = torch.device("cpu")
# In place, and the old contents don't matter: with these a storage's life begins anew.
_OVERWRITING = frozenset(
    {
        torch.ops.aten.copy_,
        torch.ops.aten.zero_,
        torch.ops.aten.fill_,
        torch.ops.aten.normal_,
        torch.ops.aten.uniform_,
        torch.ops.aten.random_,
        torch.ops.aten.exponential_,
        torch.ops.aten.log_normal_,
        torch.ops.aten.cauchy_,
        torch.ops.aten.geometric_,
    }
)


class DeferredError(RuntimeError):
    """The constructor does something whose result can't be worked out before its values exist."""


@dataclass(frozen=True, slots=True)
class View:
    """A tensor's place in a storage of ``nbytes`` bytes: enough to build it on another storage."""

    storage: int
    nbytes: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def on(self, storage: UntypedStorage) -> Tensor:
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Call:
    """One operation: in its arguments deferred tensors are Views, other tensors are constants."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[View | None, ...]  # None: not a new storage
    default_dtype: torch.dtype
    random: bool  # draws from the default generator
    uses: frozenset[int]  # storages whose contents it reads
    defines: frozenset[int]  # storages it makes or writes to
    kills: frozenset[int]  # the ones of those whose earlier contents no longer matter


class Recorder(TorchDispatchMode):
    """Writes down the operations on deferred tensors: those on meta, and CPU ones of random value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        # Kept alive while recording, or another storage would get the same address.
        self._storages: dict[int, tuple[int, UntypedStorage]] = {}

    def view(self, tensor: Tensor) -> View | None:
        """The place of a deferred tensor, None for any other."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            if tensor.device == _META:
                raise DeferredError(
                    f"a meta tensor of shape {tuple(tensor.shape)} was made outside of the recorded "
                    "constructor, so its values are unknown: make it inside"
                )
            return None
        return View(
            self._storages[storage._cdata][0],
            storage.nbytes(),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            tensor.dtype,
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        written = _tensors(_written(func, args, kwargs))
        random = torch.Tag.nondeterministic_seeded in func.tags
        deferred = random or any(self.view(tensor) is not None for tensor in inputs)
        if deferred:
            _check(func, args, kwargs)
            for tensor in written:
                self._adopt(tensor)
        result = func(*_shapes(args, inputs, written), **_shapes(kwargs, inputs, written))
        outputs = _tensors(result)
        if deferred or any(tensor.device == _META for tensor in outputs):
            born = tuple(self.view(tensor) if self._add(tensor) else None for tensor in outputs)
            overwrites = func.overloadpacket in _OVERWRITING
            self._record(func, args, kwargs, born, written, random=random, overwrites=overwrites)
        return result

    def draw(self, func: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Record as one what fills ``tensor`` with random values, looking at them on the way."""
        _check(func, args, kwargs)
        self._adopt(tensor)
        self._record(func, (tensor, *args), kwargs, (None,), [tensor], random=True, overwrites=True)
        return tensor

    def _record(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        born: tuple[View | None, ...],
        written: list[Tensor],
        *,
        random: bool,
        overwrites: bool,
    ) -> None:
        made = frozenset(view.storage for view in born if view is not None)
        changed = self._keys(written)
        if not made and not changed:
            return  # a view: only another place in a storage already known
        uses, overwritten = self._keys(_tensors((args, kwargs))), frozenset[int]()
        if overwrites and _fills_storage(args[0]):
            overwritten = changed - self._keys(_tensors((args[1:], kwargs)))
        self.calls.append(
            Call(
                func,
                self._encode(args),
                self._encode(kwargs),
                born,
                torch.get_default_dtype(),
                random,
                uses=uses - overwritten,
                defines=made | changed,
                kills=made | overwritten,
            )
        )

    def _add(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        known = storage._cdata in self._storages
        if not known:
            self._storages[storage._cdata] = (len(self._storages), storage)
        return not known

    def _adopt(self, tensor: Tensor) -> None:
        """A CPU tensor about to get a deferred value: what it holds until then is a constant."""
        if self.view(tensor) is None:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self._add(whole)
            view = self.view(whole)
            assert view is not None
            self._record(torch.clone, (whole.clone(),), {}, (view,), [], random=False, overwrites=False)

    def _keys(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        views = (self.view(tensor) for tensor in tensors)
        return frozenset(view.storage for view in views if view is not None)

    def _encode(self, arguments: Any) -> Any:
        def tensor(value: Tensor) -> View | Tensor:
            return self.view(value) or value.detach().clone()

        def device(value: torch.device) -> torch.device:
            return _CPU if value == _META else value

        return tree_map_only(torch.device, device, tree_map_only(Tensor, tensor, arguments))


@contextmanager
def whole_draws(recorder: Recorder) -> Iterator[None]:
    """Truncated normals are recorded as one: torch draws again until all values lie in the bounds."""
    scope, name = vars(nn.init), "_no_grad_trunc_normal_"
    original = scope[name]
    scope[name] = partial(recorder.draw, original)
    try:
        yield
    finally:
        scope[name] = original


def _check(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(isinstance(leaf, torch.Generator) for leaf in tree_leaves((args, kwargs))):
        raise DeferredError(f"{func} draws from a generator of its own: use the default one")
    if (
        isinstance(func, OpOverload)
        and func._schema.returns
        and not any("Tensor" in str(returned.type) for returned in func._schema.returns)
    ):
        raise DeferredError(f"the constructor reads a value that doesn't exist yet ({func})")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func: OpOverload[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that the schema says are changed in place."""
    named = dict(zip((spec.name for spec in func._schema.arguments), args, strict=False)) | kwargs
    return [
        named.get(spec.name)
        for spec in func._schema.arguments
        if spec.alias_info is not None and spec.alias_info.is_write
    ]


def _shapes(arguments: Any, inputs: list[Tensor], written: list[Tensor]) -> Any:
    """Arguments for the run on meta: what is read there must all be on meta."""
    if not any(tensor.device == _META for tensor in inputs):
        return arguments
    kept = {id(tensor) for tensor in written}
    return tree_map_only(Tensor, lambda t: t if id(t) in kept else t.to(_META), arguments)


def _fills_storage(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()
