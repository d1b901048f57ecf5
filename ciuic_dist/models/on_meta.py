"""A constructor gets its tensors on meta and doesn't notice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

_META = torch.device("meta")
_CPU = torch.device("cpu")
_STAND_IN = torch.device("cpu", 0)  # the constructor's own "cpu" has no index
_IS_META, _DEVICE = Tensor.is_meta.__get__, Tensor.device.__get__  # type: ignore[attr-defined]
_FROM_DATA = frozenset({torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor})


class OnMeta(TorchFunctionMode):
    """New tensors go to meta, and code that asks is told that they are on the CPU.

    ``with torch.device("meta")`` would not do: torch and transformers skip initialisations when they
    find it, or a tensor on meta, and then neither values nor random numbers are those of a plain run.
    Literal data keep their values, except that empty tensors, which have none, stay where they are:
    transformers looks at one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func == _IS_META:
            return False
        if func == _DEVICE:
            device = func(*args)
            return _STAND_IN if device == _META else device
        args = tuple(_META if _is_stand_in(value) else value for value in args)
        kwargs = {key: _META if _is_stand_in(value) else value for key, value in kwargs.items()}
        device = kwargs.get("device")
        if func in _FROM_DATA and device in (None, _META) and not _is_deferred(args):
            return _literal(func, args, kwargs)
        if device is None and func in _device_constructors():
            kwargs["device"] = _META
        return func(*args, **kwargs)


def _is_deferred(args: tuple[Any, ...]) -> bool:
    """Whether a tensor is to be made of a deferred one, not of literal data."""
    data = args[-1] if args else None
    return isinstance(data, Tensor) and data.is_meta


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, torch.device) and value == _STAND_IN


def _literal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    literal: Tensor = func(*args, **{**kwargs, "device": _CPU})
    if not literal.numel():
        return literal
    return literal.detach().to(_META).requires_grad_(literal.requires_grad)
