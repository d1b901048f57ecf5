"""Finds reads of weights that no hook sees: of another unit's, and of a unit's own through ``detach()``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ciuic_dist.memory.activations import is_saving
from ciuic_dist.sharding.sharded import Sharded
from ciuic_dist.sharding.unit import Unit


class ForeignReads:
    """Watches every operator of the first forward (of training and of evaluation each).

    A unit whose weight is read while it is not running itself is gathered on the spot, and from then on together
    with the unit that read it, in forward and in backward. A weight that its own unit detaches may be read in the
    backward when its gradient has come already.
    """

    def __init__(self, sharded: Sharded) -> None:
        self._sharded = sharded
        self._seen: set[bool] = set()
        self._mode: _Watch | None = None

    def start(self, *, training: bool) -> None:
        """A forward of the model begins."""
        if (training not in self._seen or self._sharded.spill is not None) and self._mode is None:
            self._seen.add(training)
            self._mode = _Watch(self._sharded)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """The forward is over."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None


class _Watch(TorchDispatchMode):
    def __init__(self, sharded: Sharded) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sharded = sharded
        self._places: dict[int, list[tuple[int, int, Unit]]] = {}
        for unit in sharded.units:
            for flat in unit.flats:
                for form in (flat.full,) if flat.home is None else (flat.full, flat.stubs[0]):
                    start = int(form.storage_offset()) * form.itemsize
                    place = (start, start + flat.full_bytes, unit)
                    self._places.setdefault(form.untyped_storage()._cdata, []).append(place)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in () if self._sharded.gathers.exchanging else pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                unit = self._owner(leaf)
                if unit is not None:
                    self._note(unit, func)
        return func(*args, **(kwargs or {}))

    def _note(self, unit: Unit, func: Any) -> None:
        if not self._sharded.is_running(unit):
            self._sharded.note_foreign_read(unit)
        elif func is torch.ops.aten.detach.default and not is_saving():
            unit.detaches = True

    def _owner(self, tensor: Tensor) -> Unit | None:
        at = tensor.storage_offset() * tensor.itemsize
        places = self._places.get(tensor.untyped_storage()._cdata, ())
        return next((unit for start, end, unit in places if start <= at < end), None)
