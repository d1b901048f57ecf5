from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from ciuic_dist.planning.profile import Recipe, training_step
from ciuic_dist.planning.trace import Item, Kind, Op, Trace
from ciuic_dist.planning.two_tier import BudgetTooSmall, TwoTier
from tests.unit.planning.traces import dense, machine, scan, traces


@given(traces())
def test_a_trace_survives_json(trace: Trace) -> None:
    assert Trace.from_json(trace.to_json()) == trace


def test_a_machine_survives_json() -> None:
    assert TwoTier.from_json(machine(7).to_json()) == machine(7)


@pytest.mark.parametrize("op", [Op("a", (1,)), Op("a", (0, 0)), Op("a", (), (0,)), Op("a", (0,), creates=(1,))])
def test_an_operation_on_what_is_not_there_is_refused(op: Op) -> None:
    with pytest.raises(ValueError, match=r"a uses|a dirties"):
        Trace((Item("x", 1, Kind.STATE),), (op,))


def test_an_operation_takes_as_long_as_its_slower_half() -> None:
    rates = TwoTier(flops=10.0, bandwidth=5.0, budget=1, up=1.0, down=1.0)
    assert rates.seconds(Op("arithmetic", flops=20.0, touched=5.0)) == 2.0
    assert rates.seconds(Op("memory", flops=20.0, touched=15.0, seconds=1.0)) == 4.0


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    trace = Trace((Item("x", 4, Kind.STATE), Item("y", 3, Kind.STATE)), (Op("both", (0, 1)),), transient=5)
    with pytest.raises(BudgetTooSmall, match="smallest budget that works is 12 bytes") as caught:
        machine(11).room(trace)
    assert machine(caught.value.needed).room(trace) == 7


def test_a_fused_step_updates_each_unit_after_its_last_backward() -> None:
    trace = training_step(dense(2, 100, 10, tokens=1), Recipe(page=500))
    assert [op.name for op in trace.ops] == [
        "forward root",
        "forward layer 0",
        "forward layer 1",
        "forward root",
        "backward root",
        "backward layer 1",
        "update layer 1",
        "update layer 1",
        "backward layer 0",
        "update layer 0",
        "update layer 0",
        "backward root",
        "update root",
    ]
    assert trace.size == 210 * 12
    assert trace.transient == 200, "the gradient of the largest unit"


def test_a_two_phase_step_keeps_gradients_until_their_update() -> None:
    trace = training_step(dense(2, 100, 10, tokens=1), Recipe(page=500, fused=False))
    names = [op.name for op in trace.ops]
    assert names.index("update layer 1") > names.index("backward layer 0")
    assert trace.size == 210 * 14
    for item, uses in enumerate(trace.uses):
        if trace.items[item].kind is Kind.GRADIENT:
            assert item in trace.ops[uses[0]].creates
            assert item in trace.ops[uses[-1]].discards


def test_checkpointing_computes_units_again_and_keeps_their_inputs() -> None:
    plain = training_step(dense(2, 100, 10, tokens=1), Recipe(page=500))
    again = training_step(dense(2, 100, 10, tokens=1), Recipe(page=500, checkpointing=True))
    assert sum(op.flops for op in again.ops) == sum(op.flops for op in plain.ops) + 2 * 200


def test_accesses_are_in_the_order_of_use() -> None:
    assert scan([0, 1, 0]).accesses == ((0, 0), (1, 1), (2, 0))
    assert scan([0, 1, 0]).uses == ((0, 2), (1,))


@pytest.mark.parametrize("fused", [True, False])
def test_weights_of_other_units_are_used_where_they_are_read(fused: bool) -> None:
    plain = dense(2, 100, 10, tokens=1)
    borrowing = replace(plain, passes=tuple(replace(p, reads=(0,) if p.unit == 1 else ()) for p in plain.passes))
    before, after = (training_step(profile, Recipe(page=500, fused=fused)).ops for profile in (plain, borrowing))
    more = {op.name: set(op.uses) - set(old.uses) for old, op in zip(before, after, strict=True)}
    assert {name for name, items in more.items() if items} == {"forward layer 1", "backward layer 1"}
    assert more["forward layer 1"] == more["backward layer 1"] == {0}
