"""How many bytes of tensors a piece of code makes and keeps."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

_MAKES_FROM_PYTHON = torch.ops.aten.lift_fresh.default  # torch.tensor and its like, whose result nothing else shows


class Storages:
    """Whose tensors were added, as long as they live: what is made later may have the same address."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        storage, alive = tensor.untyped_storage(), self._alive
        key = storage._cdata
        alive[key] = weakref.ref(storage, lambda _: alive.pop(key, None))

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._alive


class LiveBytes(TorchDispatchMode):
    """While it is on, counts the storages that operators make, until they are freed; forward and backward on the CPU.

    A storage counts once, whatever views it has, by its allocated bytes. What was there before doesn't count, nor
    what no operator made (``torch.frombuffer``, or memory that a kernel allocates for itself). Storages that
    are freed after the mode has ended are still subtracted.
    """

    def __init__(self, *, phantom: bool = False) -> None:
        """``phantom``: tensors on meta count as if they had memory."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._phantom = phantom
        self.peak = 0
        """The most bytes alive after any operator, its arguments and results among them."""
        self._now = 0
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        # Storages die anywhere, also in the middle of the methods below: that only leaves a note here.
        self._freed: deque[int] = deque()

    @property
    def now(self) -> int:
        """Bytes alive now."""
        self._settle()
        for alive in list(self._alive.values()):
            if (storage := alive()) is not None:
                self._look_at(storage)
        return self._now

    def ignore(self, tensor: Tensor) -> None:
        """Leave the storage of ``tensor`` out from now on: memory that is accounted for elsewhere."""
        self._settle()
        key = tensor.untyped_storage()._cdata
        self._now -= self._sizes.pop(key, 0)
        self._alive.pop(key, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._settle()
        known = set()
        for given in self._storages([*args, *kwargs.values()]):
            known.add(given._cdata)
            self._look_at(given)
        for storage in self._storages([result]):
            made = storage._cdata not in known or func is _MAKES_FROM_PYTHON
            if made and storage._cdata not in self._sizes:
                self._count(storage)
        self.peak = max(self.peak, self._now)
        return result

    def _count(self, storage: UntypedStorage) -> None:
        key, freed = storage._cdata, self._freed
        self._alive[key] = weakref.ref(storage, lambda _: freed.append(key))
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()

    def _look_at(self, storage: UntypedStorage) -> None:
        """Storages can be resized behind the operators' backs."""
        size = self._sizes.get(storage._cdata)
        if size is not None and size != storage.nbytes():
            self._now += storage.nbytes() - size
            self._sizes[storage._cdata] = storage.nbytes()

    def _settle(self) -> None:
        while self._freed:
            key = self._freed.popleft()
            self._now -= self._sizes.pop(key)
            del self._alive[key]

    def _storages(self, values: Iterable[Any]) -> Iterator[UntypedStorage]:
        """Those of the tensors among ``values`` and in their lists; sparse and opaque tensors have none."""
        for value in values:
            if isinstance(value, Tensor):
                if torch._C._has_storage(value) and (self._phantom or not value.is_meta):
                    yield value.untyped_storage()
            elif isinstance(value, UntypedStorage):
                yield value
            elif isinstance(value, list | tuple):
                yield from self._storages(value)
