"""A budget is kept when batches grow, and what they need is made room for before they compute."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.memory.budget import BudgetError, parse_size
from ciuic_dist.memory.live import LiveBytes
from ciuic_dist.sharding.meter import leave
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.spill import Spill
from tests.dist.launch import launch
from tests.dist.models import Output, Stack

DEVICE = "900KB"


class Fed(Stack):
    """Takes its input in any form."""

    def __init__(self) -> None:
        super().__init__(48, 200)

    def forward(self, given: Any) -> Tensor:
        held = given["deep"] if isinstance(given, dict) else given
        return super().forward(held[0].hidden if isinstance(held, list) else held)


def positional(model: nn.Module, inputs: Tensor) -> Tensor:
    output: Tensor = model(inputs)
    return output


def nested(model: nn.Module, inputs: Tensor) -> Tensor:
    output: Tensor = model(given={"deep": [Output(inputs)], "flag": True})
    return output


def rows(count: int, step: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(step * 10 + rank()))


@dataclass(frozen=True, slots=True)
class Step:
    """What a forward, and its backward where it trains, gave and took: ``room`` of the budget was left for it."""

    loss: float
    peak: int
    room: int


@dataclass(frozen=True, slots=True)
class Batches:
    """A step for each of ``rows``, of which each rank has its number; negative: evaluation, no step."""

    rows: Sequence[Sequence[int]]
    stage: int = 3
    early: bool = False
    feed: Callable[[nn.Module, Tensor], Tensor] = positional


@contextmanager
def watched() -> Iterator[LiveBytes]:
    """Counts what operators make; the engine's own counting may begin in here and go on."""
    live = LiveBytes()
    live.__enter__()  # type: ignore[no-untyped-call]
    try:
        yield live
    finally:
        leave(live)


def note_divisions(spill: Spill) -> list[int]:
    """Gets the bytes that each division from now on leaves free."""
    divisions: list[int] = []
    divide = spill.divide

    def noted(transient: int, ring: int) -> None:
        divisions.append(transient)
        divide(transient, ring)

    spill.divide = noted  # type: ignore[method-assign]
    return divisions


def train(batches: Batches, budgeted: bool) -> tuple[list[Step], int, int]:
    """The steps, the peak that is told, and how often the budget was divided."""
    torch.manual_seed(0)
    memory = None if not budgeted else cd.Memory(device=DEVICE, host="16MB")
    model = cd.shard(Fed(), stage=batches.stage, memory=memory)
    spill = sharded_of(model).spill
    divisions: list[int] = [] if spill is None else note_divisions(spill)
    optimizer = cd.AdamW(model.parameters(), lr=1e-2, in_backward=batches.early)
    steps = []
    for number, count in enumerate(of_ranks[rank()] for of_ranks in batches.rows):
        inputs = rows(abs(count), number)
        with watched() as live, torch.set_grad_enabled(count > 0):
            loss = batches.feed(model, inputs).square().mean()
            if count > 0:
                loss.backward()
        steps.append(Step(loss.item(), live.peak, 0 if spill is None else spill.budget - spill.used))
        if count > 0:
            optimizer.step()
            optimizer.zero_grad()
    return steps, cd.status(model).tiers["device"].peak, len(divisions)


def assert_kept(batches: Batches, world: int) -> list[int]:
    """Trains with and without a budget; returns how often it was divided on each rank."""
    free = launch(train, batches, False, world=world)
    kept = launch(train, batches, True, world=world)
    for (steps, peak, _), (expected, _, _) in zip(kept, free, strict=True):
        assert [step.loss for step in steps] == [step.loss for step in expected]
        assert [step for step in steps if step.peak > step.room] == []
        assert peak <= parse_size(DEVICE, "device")
    return [divided for _, _, divided in kept]


@pytest.mark.parametrize(
    ("world", "stage", "early"), [(1, 3, False), (1, 3, True), (2, 0, False), (2, 1, False), (2, 3, True)]
)
def test_more_rows(world: int, stage: int, early: bool) -> None:
    growing = [(2, 2)] * 4 + [(24, 2)] * 4
    divided = assert_kept(Batches(growing, stage, early), world)
    assert divided == ([2, 1] if stage == 0 else [2] * world)  # ranks that share full forms do it together


def test_more_rows_while_the_first_are_weighed_and_in_any_form() -> None:
    assert assert_kept(Batches([(2, 2), (2, 24), (2, 24), (2, 2)], feed=nested), 2) == [1, 1]


@pytest.mark.parametrize(("world", "divided"), [(1, 2), (2, 4)])
def test_more_rows_in_evaluation(world: int, divided: int) -> None:
    batches = [(2, 2)] * 3 + [(-2, -4), (-40, -4)] + [(2, 2)] * 3 + [(-40, -40)]
    assert assert_kept(Batches(batches), world) == [divided] * world


def test_rows_that_go_on_growing_are_made_room_for_ahead() -> None:
    batches = [(2, 2)] * 3 + [(count, count) for count in range(3, 19)]
    [divided] = assert_kept(Batches(batches), 1)
    assert 2 <= divided <= 7


def refuse(large: int) -> tuple[str, str, list[float]]:
    """Where the second rank's large batch was refused on this one, and how; the losses of the others, small ones."""
    torch.manual_seed(0)
    model = cd.shard(Fed(), memory=cd.Memory(device=DEVICE, host="16MB", activations="keep"))
    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    losses, where, answer = [], "", ""
    for step, count in enumerate([2, 2, 2, large * rank() or 2, 2, 2, 2]):
        try:
            where = where if answer else "forward"
            loss = model(rows(count, step)).square().mean()
            where = where if answer else "backward"
            loss.backward()
        except BudgetError as error:
            answer = str(error)
        else:
            losses.append(loss.item())
            optimizer.step()
        optimizer.zero_grad()
    return where, answer, losses


@pytest.mark.parametrize(("large", "expected"), [(55, "backward"), (400, "forward")])
def test_too_many_rows_on_one_rank_are_refused_on_all(large: int, expected: str) -> None:
    for where, answer, losses in launch(refuse, large, world=2):
        assert where == expected
        assert re.search(r"at least \d+\.\d\d [KM]iB are needed", answer)
        assert len(losses) == 6


def fail_in_backward(module: nn.Module, inputs: Any, output: Tensor) -> None:
    def fail(gradient: Tensor) -> None:
        raise ArithmeticError("on purpose")

    output.register_hook(fail)


def skip_an_update(counts: Sequence[int], skipped: int, raises: bool) -> tuple[list[float], int]:
    """Losses and the number of divisions; in the backward of the step skipped the second rank may raise."""
    torch.manual_seed(0)
    model = cd.shard(Fed(), memory=cd.Memory(device="1500KB", host="16MB", activations="keep"))
    spill = sharded_of(model).spill
    assert spill is not None
    divisions = note_divisions(spill)
    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step, count in enumerate(counts):
        fails = raises and step == skipped and rank() == 1
        failing = model.get_submodule("blocks.1").register_forward_hook(fail_in_backward) if fails else None
        loss = model(rows(count, step)).square().mean()
        losses.append(loss.item())
        with pytest.raises(ArithmeticError) if fails else nullcontext():
            loss.backward()
        if failing is not None:
            failing.remove()
        if step != skipped:
            optimizer.step()
        optimizer.zero_grad()
    return losses, len(divisions)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "collectives"])
@pytest.mark.parametrize(
    ("counts", "skipped", "divided"), [([2] * 5, 0, 1), ([2] * 3 + [24] + [2] * 3 + [24] * 2, 3, 3)]
)
def test_a_backward_that_raises_on_one_rank_keeps_step(
    counts: list[int], skipped: int, divided: int, shared: bool
) -> None:
    expected = launch(skip_an_update, counts, skipped, False, shared=shared)
    raised = launch(skip_an_update, counts, skipped, True, shared=shared)
    assert [losses for losses, _ in raised] == [losses for losses, _ in expected]
    assert [number for _, number in raised] == [divided] * 2


def evaluate_again(large: int) -> tuple[bool, int]:
    """A large evaluation that raises on the second rank, and once more: whether it kept the budget; divisions."""
    torch.manual_seed(0)
    model = cd.shard(Fed(), memory=cd.Memory(device=DEVICE, host="16MB"))
    spill = sharded_of(model).spill
    assert spill is not None
    divisions = note_divisions(spill)
    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        model(rows(2, step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    inputs = rows(large if rank() else 2, 3)
    with torch.no_grad(), watched() as live:
        failing = model.get_submodule("blocks.0").register_forward_pre_hook(fail_in_forward)
        with pytest.raises(ArithmeticError) if rank() else nullcontext():
            model(inputs)
        failing.remove()
        model(inputs)
    return live.peak <= spill.budget - spill.used, len(divisions)


def fail_in_forward(module: nn.Module, inputs: Any) -> None:
    if rank():
        raise ArithmeticError("on purpose")


def test_an_evaluation_that_raises_on_one_rank_is_made_room_for_anew() -> None:
    assert launch(evaluate_again, 40) == [(True, 3)] * 2


def grow_without_room_below(counts: Sequence[int], crowded: int) -> tuple[list[str], list[float]]:
    """What forwards answer, and the losses of the others; at one the second rank has no room below."""
    torch.manual_seed(0)
    model = cd.shard(Fed(), memory=cd.Memory(device=DEVICE, host="16MB"))
    spill = sharded_of(model).spill
    assert spill is not None
    shrink = spill.shrink

    def fail() -> None:
        shrink()
        raise BudgetError("no tier has room")

    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    answers, losses = [], []
    for step, count in enumerate(counts):
        spill.shrink = fail if step == crowded and rank() == 1 else shrink  # type: ignore[method-assign]
        try:
            loss = model(rows(count, step)).square().mean()
        except BudgetError as error:
            answers.append(str(error))
            continue
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return answers, losses


@pytest.mark.parametrize("after", [[2, 2, 24], [24, 2]])
def test_larger_inputs_that_one_rank_has_no_room_for_are_refused_on_all(after: list[int]) -> None:
    (first, losses), (second, others) = launch(grow_without_room_below, [2, 2, 2, 24, *after], 3)
    assert len(first) == len(second) == 1
    assert "on another rank" in first[0]
    assert "no tier has room" in second[0]
    assert len(losses) == len(others) == 3 + len(after)
