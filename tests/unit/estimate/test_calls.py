"""Calls of operators: what tells them apart, and that each is timed once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from ciuic_dist.estimate import calls
from ciuic_dist.estimate.calls import Call, Clock
from ciuic_dist.estimate.phantom import phantom

aten = torch.ops.aten
TEXT = """
import torch
from ciuic_dist.estimate.calls import Call
left = torch.zeros(2, 3, dtype=torch.bfloat16).t()
print(Call.of(torch.ops.aten.cat.default, ([left, torch.zeros(1)], 0), {"b": torch.float32, "a": None}))
"""


def call(func: Any, *args: Any, **kwargs: Any) -> Call:
    made = Call.of(func, args, kwargs)
    assert made is not None
    return made


def test_calls_are_told_apart_by_the_forms_of_their_arguments() -> None:
    plain = call(aten.add.Tensor, torch.zeros(2, 3), 1)
    assert plain == call(aten.add.Tensor, torch.ones(2, 3, requires_grad=True), 1), "values and learning don't matter"
    with phantom():
        assert plain == call(aten.add.Tensor, torch.zeros(2, 3), 1), "nor whether there are any"
    others = [
        call(aten.mul.Tensor, torch.zeros(2, 3), 1),
        call(aten.add.Tensor, torch.zeros(2, 3), 2),
        call(aten.add.Tensor, torch.zeros(2, 3), 1, alpha=2),
        call(aten.add.Tensor, torch.zeros(3, 2), 1),
        call(aten.add.Tensor, torch.zeros(3, 2).t(), 1),
        call(aten.add.Tensor, torch.zeros(2, 3, dtype=torch.bfloat16), 1),
    ]
    assert len({plain, *others}) == len({str(made) for made in (plain, *others)}) == 7


def test_what_can_not_be_made_again_is_no_call() -> None:
    assert Call.of(aten.add.Tensor, (torch.zeros(2), object()), {}) is None
    assert Call.of(aten.add.Tensor, ([torch.zeros(2), [object()]],), {}) is None
    assert Call.of(aten.rand.default, ([2],), {"generator": torch.Generator()}) is None


def test_the_text_is_the_same_in_another_process() -> None:
    left = torch.zeros(2, 3, dtype=torch.bfloat16).t()
    here = call(aten.cat.default, [left, torch.zeros(1)], 0, a=None, b=torch.float32)
    there = subprocess.run([sys.executable, "-c", TEXT], capture_output=True, text=True, check=True).stdout
    assert str(here) == there.strip()


def test_each_is_measured_once_and_what_is_known_never(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, known = (call(aten.add.Tensor, torch.zeros(size), 1) for size in (4, 5, 6))
    timed: list[Call] = []

    def time(made: Call) -> float:
        timed.append(made)
        return 0.5

    monkeypatch.setattr(calls, "_timed", time)
    clock = Clock({str(known): 2.0})
    clock.measure([first, known, second, first])
    clock.measure([second, known])
    assert timed == [first, second]
    assert clock.known == {str(first): 0.5, str(second): 0.5, str(known): 2.0}
    assert clock.seconds({first: 3, known: 2}) == 5.5
    assert Clock(clock.known).seconds({first: 1}) == 0.5


@pytest.mark.parametrize(
    ("left", "right"),
    [((6, 16), (2, 16, 8)), ((2, 8, 16), (16, 6)), ((16, 6), (6, 8))],
    ids=["rows", "columns", "sums"],
)
def test_the_groups_of_a_product_are_all_there_is(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    ends = torch.zeros(2, dtype=torch.int32)
    made = call(aten._grouped_mm.default, torch.zeros(left), torch.zeros(right), ends)
    assert calls._made(made.args[2], made).tolist() == [3, 6]


@pytest.mark.parametrize(
    "made",
    [
        call(aten.mm.default, torch.zeros(8, 8).t(), torch.zeros(8, 4)),
        call(aten.cat.default, [torch.zeros(2, 3), torch.zeros(2, 5)], 1),
        call(aten.add_.Tensor, torch.zeros(4, 4), torch.zeros(4, 1).expand(4, 4)),
        call(aten.embedding.default, torch.zeros(9, 4), torch.arange(4)),
        call(aten.zeros.default, [4], dtype=torch.float32, device=torch.device("cpu")),
        call(
            aten._grouped_mm.default,
            torch.zeros(6, 16, dtype=torch.bfloat16),
            torch.zeros(2, 16, 8, dtype=torch.bfloat16),
            torch.tensor([4, 6], dtype=torch.int32),
        ),
    ],
    ids=str,
)
def test_calls_run_on_tensors_of_their_forms(made: Call) -> None:
    clock = Clock()
    clock.measure([made])
    assert clock.seconds({made: 1}) > 0


def test_kinds_of_operators_count_as_so_much_slower_as_they_were_seen() -> None:
    small, large, other = (
        call(aten.mm.default, torch.zeros(4, 4), torch.zeros(4, 4)),
        call(aten.mm.default, torch.zeros(8, 4), torch.zeros(4, 4)),
        call(aten.add.Tensor, torch.zeros(4), 1),
    )
    known = {str(small): 1.0, str(large): 2.0, str(other): 4.0}
    clock = Clock(known, {str(small): (6.0, 4), str(large): (3.0, 1), "aten.gone()": (9.0, 1)})
    assert clock.seconds({small: 2}) == 2 * 1.5, "4 and 1 calls that take 6 s alone took 9"
    assert clock.seconds({large: 1}) == 2 * 1.5, "whatever they are given"
    assert clock.seconds({other: 1}) == 4.0, "one that was never seen is as it was measured"
    assert clock.known == known, "what is measured is remembered as it was"
