"""The optimizer in the backward: what it can't do is an error, and never another number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from tests.dist.launch import launch
from tests.dist.models import Stack


def clip() -> str:
    model = cd.shard(Stack())
    cd.AdamW(model.parameters())
    kept = cd.AdamW(model.parameters(), in_backward=True)
    model(torch.ones(4, 8)).square().mean().backward()
    with pytest.raises(RuntimeError) as caught:
        cd.clip_grad_norm_(model, 1.0)
    kept.step()
    return str(caught.value)


def test_clipping_is_refused() -> None:
    assert all("in_backward" in message for message in launch(clip))


def forget_the_step() -> str:
    model = cd.shard(Stack())
    kept = cd.AdamW(model.parameters(), in_backward=True)
    model(torch.ones(4, 8)).square().mean().backward()
    with pytest.raises(RuntimeError) as caught:
        model(torch.ones(4, 8))
    kept.step()
    return str(caught.value)


def test_a_forward_before_the_step_is_refused() -> None:
    assert all("step()" in message for message in launch(forget_the_step))


def fail_in_the_middle() -> tuple[str, str, bool]:
    """A backward that raises below the last block, after a micro-batch that was whole."""
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters(), in_backward=True)
    x = torch.ones(4, 8)
    with cd.no_sync(model):
        model(x).square().mean().backward()
    before = model.get_parameter("blocks.0.up.weight").detach().clone()
    failing = model.blocks[1].register_forward_hook(_fail_in_backward)  # type: ignore[index, union-attr]
    loss = model(x).square().mean()
    with pytest.raises(RuntimeError, match="on purpose"):
        loss.backward()
    failing.remove()
    errors = []
    for attempt in (optimizer.step, optimizer.step):
        with pytest.raises(RuntimeError) as caught:
            attempt()
        errors.append(str(caught.value))
    return errors[0], errors[1], torch.equal(model.get_parameter("blocks.0.up.weight"), before)


def _fail_in_backward(module: nn.Module, inputs: Any, output: Tensor) -> None:
    def fail(gradient: Tensor) -> None:
        raise RuntimeError("on purpose")

    output.register_hook(fail)


def test_a_backward_that_raises_updates_nothing_more() -> None:
    [(first, second, unchanged)] = launch(fail_in_the_middle, world=1)
    assert "last backward raised" in first
    assert "load a checkpoint" in second
    assert unchanged
