"""Units timed as a whole: which are alike, which can be, and what their time does to a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ciuic_dist.estimate.calls import Clock
from ciuic_dist.estimate.phantom import phantom
from ciuic_dist.estimate.tracer import Work, trace
from ciuic_dist.estimate.whole import Whole
from ciuic_dist.estimate.workload import profiles
from ciuic_dist.planning.profile import Profile

IMAGE = torch.empty(1, 8)


class Block(nn.Module):
    def __init__(self, *, power: float = 1.0, frozen: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8).requires_grad_(not frozen)
        self.power = power

    def forward(self, rows: Tensor, *, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(rows) ** self.power
        return out


class Twice(Block):
    def forward(self, rows: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return super().forward(rows) + 1


class Picky(Block):
    """Doesn't run with values of no consequence."""

    def forward(self, rows: Tensor, *, mask: Tensor | None = None) -> Tensor:
        if not rows.is_meta and rows.device.type == "cpu" and type(rows.sum().item()) is float:
            raise ValueError("what is this?")
        return super().forward(rows)


def works(*blocks: nn.Module) -> tuple[Work, ...]:
    with phantom():
        model = nn.Sequential(*blocks).to("meta")
        units = {str(index): block for index, block in enumerate(blocks)}
        return trace(model, units, lambda: model(torch.empty(4, 8).requires_grad_()).sum())[1]


def names(*blocks: nn.Module) -> list[str]:
    return [work.name for work in works(*blocks) if work.name]


def test_units_that_are_alike_have_one_name() -> None:
    first, second, *backwards = names(Block(), Block())
    assert [first, second] == backwards
    assert first == second == names(Block())[0], "of another model too"
    assert len({first, *(names(other)[0] for other in (Block(power=2.0), Block(frozen=True), Twice()))}) == 4


def test_the_root_and_units_that_run_twice_are_none() -> None:
    block = Block()
    with phantom():
        model = nn.Sequential(block, nn.ReLU(), block).to("meta")
        _, found = trace(model, {"block": block}, lambda: model(torch.empty(4, 8)).sum())
    assert [work.unit for work in found] == [None] * len(found)
    assert sum(work.unit is not None for work in works(Block())) == 2
    assert works(Block())[-1].unit is None


def test_what_can_not_be_made_again_is_no_unit() -> None:
    assert Whole.of(Block(), (torch.zeros(1, 8),), {"mask": None}) is not None
    assert Whole.of(Block(), (torch.zeros(1, 8),), {"mask": object()}) is None


def test_a_unit_runs_with_values_of_no_consequence_and_keeps_its_own() -> None:
    block = Block()
    before = block.inner.weight.detach().clone()
    made = Whole.of(block, (torch.zeros(4, 8).requires_grad_(),), {"mask": torch.ones(4, dtype=torch.bool)})
    assert made is not None
    assert min(made.seconds()) > 0
    assert block.inner.weight.grad is None
    assert torch.equal(block.inner.weight, before)


def test_one_that_does_not_run_takes_nothing() -> None:
    made = Whole.of(Picky(), (torch.zeros(4, 8),), {})
    assert made is not None
    assert made.seconds() == (0.0, 0.0)


def test_each_is_timed_once_and_leaves_random_numbers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Whole] = []

    def seconds(whole: Whole) -> tuple[float, float]:
        timed.append(whole)
        torch.rand(3)
        return 1.0, 2.0

    monkeypatch.setattr(Whole, "seconds", seconds)
    whole = Whole(Block(), {}, ((), {}))
    clock = Clock()
    state = torch.get_rng_state()
    clock.measure([], {"a": whole, "b": whole})
    clock.measure([], {"a": whole})
    Clock(clock.known).measure([], {"a": whole})
    assert torch.equal(torch.get_rng_state(), state)
    assert timed == [whole, whole]
    assert (clock.whole("a", backward=False), clock.whole("b", backward=True)) == (1.0, 2.0)


def timed(monkeypatch: pytest.MonkeyPatch, whole: tuple[float, float], operator: float, slower: float = 1.0) -> Profile:
    """Of a model of two units, as if each of its operators and each whole unit took so long.

    ``slower``: by which factor operators were seen to take longer.
    """

    def measure(self: Clock, calls: Any, wholes: Mapping[str, Whole]) -> None:
        self.known = {str(call): operator for call in calls}
        self._slower = {text.partition("(")[0]: slower for text in self.known}
        for name in wholes:
            self.known |= {f"forward of {name}": whole[0], f"backward of {name}": whole[1]}

    monkeypatch.setattr(Clock, "measure", measure)
    model = nn.Sequential(Block(), Block())
    return profiles(model, IMAGE, units=["Block"], clock=Clock())(2)


def test_a_pass_takes_what_its_unit_takes_and_no_less_than_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [made for made in timed(monkeypatch, (100.0, 300.0), 1.0).passes if made.unit < 2]
    assert [made.seconds for made in slow] == [300.0 if made.backward else 100.0 for made in slow]
    quick = [made for made in timed(monkeypatch, (0.0, 0.0), 1.0).passes if made.unit < 2]
    assert all(0.0 < made.seconds < 100.0 for made in quick)


@pytest.mark.parametrize(("slower", "seconds"), [(0.25, 25.0), (1.0, 100.0), (4.0, 100.0)])
def test_a_unit_was_timed_on_a_machine_as_busy_as_its_operators(
    slower: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = timed(monkeypatch, (100.0, 100.0), 1e-3, slower).passes
    assert [made.seconds for made in passes if made.unit < 2] == pytest.approx([seconds] * 4)
