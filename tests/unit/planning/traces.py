"""Small traces for the tests of planning."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from ciuic_dist.planning.profile import Pass, Profile, UnitProfile
from ciuic_dist.planning.trace import Item, Kind, Op, Trace
from ciuic_dist.planning.two_tier import TwoTier


def scan(order: Sequence[int], *, size: int = 10, dirty: bool = False, kind: Kind = Kind.STATE) -> Trace:
    """An operation of one second for each entry, which uses that item."""
    items = tuple(Item(f"item {index}", size, kind) for index in range(max(order) + 1))
    ops = tuple(Op(f"op {at}", (item,), (item,) if dirty else (), seconds=1.0) for at, item in enumerate(order))
    return Trace(items, ops)


def machine(budget: int, *, link: float = 10.0, duplex: bool = True) -> TwoTier:
    """Rates of one, but for the link: an item of ten bytes takes a second."""
    return TwoTier(1.0, 1.0, budget, link, link, duplex)


def dense(layers: int, parameters: int, root: int, tokens: int) -> Profile:
    """A decoder of equal layers, at 2 FLOPs a parameter and token forward and twice that backward."""
    units = (*(UnitProfile(f"layer {index}", parameters) for index in range(layers)), UnitProfile("root", root))
    work, head = 2.0 * parameters * tokens, 1.0 * root * tokens
    forward = [
        Pass(layers, False, 0.0),
        *(Pass(index, False, work) for index in range(layers)),
        Pass(layers, False, head),
    ]
    backward = [Pass(p.unit, True, 2 * p.flops) for p in reversed(forward)]
    return Profile(units, (*forward, *backward))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Up to six items of up to nine bytes and up to ten operations on them, some of which create and discard."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    items = tuple(Item(str(index), size, draw(st.sampled_from(Kind))) for index, size in enumerate(sizes))
    ops = []
    for at in range(draw(st.integers(1, 10))):
        uses = tuple(draw(st.lists(st.sampled_from(range(len(items))), max_size=3, unique=True)))
        dirties = tuple(item for item in uses if draw(st.booleans()))
        ops.append(Op(f"op {at}", uses, dirties, seconds=draw(st.sampled_from([0.1, 1.0, 3.0]))))
    if draw(st.booleans()):
        gradient = Item("gradient", draw(st.integers(1, 9)), Kind.GRADIENT)
        index = len(items)
        made = Op("make", (index,), (index,), creates=(index,), seconds=1.0)
        ops = [made, *ops, Op("take", (index,), discards=(index,), seconds=1.0)]
        items = (*items, gradient)
    return Trace(items, tuple(ops))
