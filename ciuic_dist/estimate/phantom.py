"""A model runs without its values: integers are real, floating-point tensors have a shape and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_GROUPED = torch.ops.aten._grouped_mm.default
_META, _CPU = torch.device("meta"), torch.device("cpu")
_IS_META, _DEVICE = Tensor.is_meta.__get__, Tensor.device.__get__  # type: ignore[attr-defined]


@contextmanager
def phantom() -> Iterator[None]:
    """What is computed from tensors on meta is on meta, and code that asks is told that it is on the CPU.

    Masks, positions and whatever else is an integer have values, so that models find the same shortcuts as in
    training. torch's own fake tensors would do as well but for that: transformers knows them, and takes none.
    """
    with _CPU, _Hidden(), _Phantom():  # type: ignore[no-untyped-call]  # whatever the default device is
        yield


class _Hidden(TorchFunctionMode):
    """Nobody sees that a tensor is on meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_META:
            return False
        if func == _DEVICE:
            return _CPU
        return func(*args, **(kwargs or {}))


class _Phantom(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        absent = any(tensor.is_meta for tensor in tensors)
        if _takes_device(func):
            if absent or _gives_floats(args, kwargs):
                kwargs["device"] = _META
            if _gives_integers(kwargs):
                kwargs["device"] = _META if func is torch.ops.aten._to_copy.default and absent else _CPU
        if absent and not all(tensor.is_meta for tensor in tensors) and "device" not in kwargs:
            if func._schema.is_mutable and not args[0].is_meta:
                return args[0]  # what has values keeps them
            args, kwargs = pytree.tree_map_only(Tensor, _without_values, (args, kwargs))
        if func is _GROUPED and absent:
            return _grouped(*args, **kwargs)
        return func(*args, **kwargs)


@cache
def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _gives_floats(args: Any, kwargs: Any) -> bool:
    """Whether a tensor made anew is of floating-point numbers."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return bool(dtype.is_floating_point)
    like = next((value for value in args if isinstance(value, Tensor)), None)
    if like is not None:
        return like.dtype.is_floating_point
    plain = [value for value in args if isinstance(value, bool | int | float)]
    return not plain or any(isinstance(value, float) for value in plain)


def _gives_integers(kwargs: Any) -> bool:
    dtype = kwargs.get("dtype")
    return dtype is not None and not dtype.is_floating_point and not dtype.is_complex


def _grouped(left: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """On meta torch has this product for bf16 alone, whatever the CPU can do."""
    made: Tensor = _GROUPED(left.to(torch.bfloat16), right.to(torch.bfloat16), *args, **kwargs)
    return torch.empty_like(made, dtype=left.dtype)


def _without_values(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
