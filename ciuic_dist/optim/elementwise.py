"""Whether an optimizer treats every element alone, so that it may work on pieces of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_KERNELS = {"capturable", "foreach", "fused"}  # the same numbers, on the devices that have them
_VISIBLE_LR = 0.1


def check_elementwise(cls: type[Optimizer], options: dict[str, Any]) -> dict[str, torch.dtype]:
    """Try ``cls`` on a small matrix whole and in two halves; raise ValueError unless the updates are equal.

    Returns the keys of its state that has one value an element, and their dtypes, for parameters in fp32.
    """
    trial = {key: value for key, value in options.items() if key not in _KERNELS}
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 4, generator=generator)
    gradients = [torch.randn(6, 4, generator=generator) for _ in range(2)]
    try:
        (whole,), state = _updates(cls, trial, [values], [[g] for g in gradients])
        pieces = [list(g.flatten().chunk(2)) for g in gradients]
        halves, _ = _updates(cls, trial, list(values.flatten().chunk(2)), pieces)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, TypeError) and "unexpected keyword" in str(error):
            raise
        raise ValueError(f"{cls.__name__} can't work on pieces of parameters: {error}") from error
    if not torch.allclose(whole.flatten(), torch.cat(halves), rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"{cls.__name__} looks at a parameter as a whole, so it can't work on the pieces a rank owns; "
            f"use an elementwise optimizer such as AdamW, Adam, SGD, RMSprop, Adagrad or NAdam"
        )
    elementwise = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim()}
    return {key: value.dtype for key, value in elementwise.items() if value.numel() == values.numel()}


def _updates(
    cls: type[Optimizer], options: dict[str, Any], values: list[Tensor], gradients: list[list[Tensor]]
) -> tuple[list[Tensor], dict[str, Any]]:
    """What the steps add to each of ``values``, and the state of the first in the end."""
    parameters = [nn.Parameter(value.clone()) for value in values]
    optimizer = cls(parameters, **options)
    for group in optimizer.param_groups:
        if isinstance(group.get("lr"), int | float | Tensor):
            group["lr"] = _VISIBLE_LR  # updates by a small one would all look alike
    settings = [{**group, "params": None} for group in optimizer.param_groups]
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    if settings != [{**group, "params": None} for group in optimizer.param_groups]:
        raise ValueError("it changes its groups' settings in a step, and is stepped more than once a step here")
    updates = [parameter.detach() - value for parameter, value in zip(parameters, values, strict=True)]
    return updates, dict(optimizer.state.get(parameters[0], {}))
