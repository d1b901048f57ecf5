from __future__ import annotations

from collections import Counter
from itertools import islice

from ciuic_dist.planning.policy import Policy, rotating
from ciuic_dist.planning.profile import Profile, Recipe
from ciuic_dist.planning.routing import Experts, draw, foreseen, routed, routed_steps
from ciuic_dist.planning.simulate import simulate
from ciuic_dist.planning.trace import Trace
from ciuic_dist.planning.view import View
from tests.unit.planning.traces import dense, machine

MODEL = dense(2, 500, 20, tokens=1)
EXPERTS = Experts(count=4, parameters=100, active=1)
RECIPE = Recipe(page=1000)


def rounds(*routings: tuple[tuple[int, ...], ...]) -> Trace:
    return routed_steps(MODEL, EXPERTS, routings, RECIPE)


def work(profile: Profile) -> float:
    return sum(p.flops for p in profile.passes)


def test_a_draw_is_of_different_experts_and_repeats_with_its_seed() -> None:
    first, again = (list(islice(draw(3, 8, 2, skew=1.0, seed=5), 20)) for _ in range(2))
    assert first == again != list(islice(draw(3, 8, 2, skew=1.0, seed=6), 20))
    assert all(len(set(layer)) == 2 for routing in first for layer in routing)


def test_a_skew_prefers_some_experts() -> None:
    def most(skew: float) -> int:
        counts = Counter(routing[0] for routing in islice(draw(1, 8, 1, skew=skew, seed=0), 800))
        return max(counts.values())

    assert most(0.0) < 150
    assert most(1.5) > 250


def test_experts_are_units_that_share_the_work_of_their_layer() -> None:
    split = routed(MODEL, EXPERTS, ((1, 3), (0,)))
    assert split.parameters == MODEL.parameters
    assert work(split) == work(MODEL)
    names = [split.units[p.unit].name for p in split.passes]
    assert names[1:6] == ["layer 0", "layer 0 expert 1", "layer 0 expert 3", "layer 1", "layer 1 expert 0"]
    assert names[1:6] == names[-2:-7:-1], "backward goes the other way"


def test_experts_that_are_not_chosen_are_not_touched() -> None:
    trace = rounds(((1,), (0,)), ((2,), (0,)))
    assert trace.steps == 2
    used = {trace.items[item].name for item, uses in enumerate(trace.uses) if uses}
    assert {name for name in used if "layer 0 expert" in name and "parameter" in name} == {
        "layer 0 expert 1 parameter",
        "layer 0 expert 2 parameter",
    }


def test_a_choice_is_foreseen_once_the_router_has_run() -> None:
    trace = rounds(((1,), (0,)), ((2,), (0,)))
    rank, view = foreseen(trace, MODEL), View(trace)
    item = next(index for index, i in enumerate(trace.items) if i.name == "layer 0 expert 2 parameter")
    router = [index for index, op in enumerate(trace.ops) if op.name == "forward layer 0"][1]
    view.now = router
    assert rank(view, item) != view.next_use[item] == router + 1
    view.now = router + 1
    assert rank(view, item) == view.next_use[item]


def test_what_was_used_more_often_is_expected_sooner() -> None:
    trace = rounds(((1,), (0,)), ((2,), (0,)))
    rank, view = foreseen(trace, MODEL), View(trace)
    one, two = (
        next(index for index, i in enumerate(trace.items) if i.name == f"layer 0 expert {expert} parameter")
        for expert in (1, 2)
    )
    view.counts[one] = 3
    assert rank(view, one) < rank(view, two)


def test_foresight_is_worth_no_less_than_the_routers_word() -> None:
    trace = routed_steps(MODEL, EXPERTS, list(islice(draw(2, 4, 2, skew=1.0, seed=1), 4)), RECIPE)
    where = machine(trace.transient + trace.size // 2, link=2000.0)
    known = simulate(trace, where, rotating())
    online = simulate(trace, where, Policy("online", rank=foreseen(trace, MODEL)))
    assert known.seconds <= online.seconds
