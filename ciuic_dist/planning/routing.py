"""Steps of a model with experts: which ones compute is known only once their layer's router has run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from random import Random

from ciuic_dist.planning.policy import Rank
from ciuic_dist.planning.profile import Pass, Profile, Recipe, UnitProfile, training_step
from ciuic_dist.planning.trace import Op, Trace
from ciuic_dist.planning.view import View

Routing = tuple[tuple[int, ...], ...]
"""For each layer, the experts that compute in a step."""


@dataclass(frozen=True, slots=True)
class Experts:
    """What each unit but the root holds beside its dense part."""

    count: int
    parameters: int
    """Elements of one expert."""
    active: int
    """Experts a token goes through."""


def draw(layers: int, experts: int, chosen: int, *, skew: float, seed: int) -> Iterator[Routing]:
    """Routings of step after step: ``chosen`` different experts a layer.

    Each layer's experts are ranked at random, and drawn with a weight of ``rank ** -skew`` (Zipf's law).
    """
    random = Random(seed)  # noqa: S311  # nothing secret
    weights = [[(rank + 1) ** -skew for rank in random.sample(range(experts), experts)] for _ in range(layers)]
    while True:
        yield tuple(_sample(random, layer, chosen) for layer in weights)


def _sample(random: Random, weights: Sequence[float], chosen: int) -> tuple[int, ...]:
    """Without putting back: the largest of ``u ** (1 / weight)`` (Efraimidis and Spirakis, 2006)."""
    keys = [random.random() ** (1 / weight) for weight in weights]
    return tuple(sorted(sorted(range(len(keys)), key=keys.__getitem__)[-chosen:]))


def routed(profile: Profile, experts: Experts, routing: Routing) -> Profile:
    """The same model with each expert a unit of its own, in a step in which only those of ``routing`` compute.

    They share the work that the experts of their layer have in ``profile``; what is saved stays the layer's.
    """
    layers = len(profile.units) - 1
    held = experts.count * experts.parameters
    dense = [replace(unit, parameters=unit.parameters - held) for unit in profile.units[:-1]]
    split = [UnitProfile(f"{u.name} expert {e}", experts.parameters) for u in dense for e in range(experts.count)]

    def passes(p: Pass) -> Iterator[Pass]:
        if p.unit == layers:
            yield replace(p, unit=layers + len(split))
            return
        active = experts.active * experts.parameters
        share = active / (dense[p.unit].parameters + active)
        parts = [replace(p, flops=p.flops * (1 - share))]
        for expert in routing[p.unit]:
            flops = p.flops * share / len(routing[p.unit])
            parts.append(Pass(layers + p.unit * experts.count + expert, p.backward, flops))
        yield from reversed(parts) if p.backward else parts

    units = (*dense, *split, profile.units[-1])
    return Profile(units, tuple(chain.from_iterable(map(passes, profile.passes))))


def routed_steps(profile: Profile, experts: Experts, routings: Sequence[Routing], recipe: Recipe) -> Trace:
    """One round of a step for each of ``routings``."""
    steps = [training_step(routed(profile, experts, routing), recipe) for routing in routings]
    ops: tuple[Op, ...] = tuple(chain.from_iterable(step.ops for step in steps))
    return Trace(steps[0].items, ops, max(step.transient for step in steps), len(steps))


def foreseen(trace: Trace, profile: Profile) -> Rank:
    """Ranks by the next use as far as a runtime can know it; ``profile`` is of the unsplit model.

    What a router has not yet chosen counts as used when its layer comes next, and later in inverse proportion to
    how often it was used so far.
    """
    routers = {unit.name: _indices(trace, f"forward {unit.name}") for unit in profile.units[:-1]}
    layer_of = {
        item: unit for item, i in enumerate(trace.items) for unit in routers if i.name.startswith(f"{unit} expert ")
    }
    count = len(trace.ops)
    step = count / trace.steps
    per_step = [len(uses) / max(len({int(use / step) for use in uses}), 1) for uses in trace.uses]

    def rank(view: View, item: int) -> float:
        use = view.next_use[item]
        if item not in layer_of or use == math.inf:
            return use
        known = routers[layer_of[item]]
        done, index = divmod(int(use), count)
        if view.now > done * count + known[bisect_right(known, index) - 1]:
            return use
        done, index = divmod(view.now, count)
        following = bisect_right(known, index)
        comes = done * count + (known[following] if following < len(known) else known[0] + count)
        likely = (view.counts[item] / per_step[item] + 1) / (view.now / step + 2)
        return comes + step * (1 / min(likely, 1.0) - 1)

    return rank


def _indices(trace: Trace, name: str) -> list[int]:
    return [index for index, op in enumerate(trace.ops) if op.name == name]
