"""Which steps are replayed, and the record of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks.replay.models import measure
from benchmarks.replay.peers import min_on_demand, peers
from ciuic_dist.planning.choose import choose
from ciuic_dist.planning.policy import paged
from ciuic_dist.planning.profile import Profile, Recipe, training_step
from ciuic_dist.planning.simulate import Outcome, simulate
from ciuic_dist.planning.two_tier import BudgetTooSmall, TwoTier

MIB = 1 << 20
H100 = TwoTier(flops=400e12, bandwidth=3.35e12, budget=80 * 10**9, up=50e9, down=50e9)
"""One H100 SXM: the rate that training reaches, and PCIe gen5 both ways."""

TOKENS = {
    "llama-7b": (2048, 4096, 8192),
    "llama-13b": (4096, 8192, 16384),
    "vit-h": (4096, 16384),
    "t5-11b": (2048, 8192),
    "gpt2-xl": (4096, 16384),
    "mixtral-8x7b": (16384, 65536),
}
PAGES = {"vit-h": 24 * MIB, "gpt2-xl": 64 * MIB, "llama-7b": 192 * MIB, "mixtral-8x7b": 1024 * MIB}
"""Bytes of a page where it isn't 256 MiB: a page of the runtime is smaller, which only helps ours."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One step on one budget."""

    model: str
    tokens: int
    checkpointing: bool
    share: float | None
    """Of the items' bytes that the room has; None: the machine's own budget."""
    fused: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """What came of it. Bytes and seconds a step."""

    setting: Setting
    compute: float = 0.0
    items: int = 0
    room: int = 0
    transient: int = 0
    bound: float | None = None
    ours: Outcome | None = None
    """Of what the engine does."""
    best: Outcome | None = None
    """Of some dozen candidates."""
    others: dict[str, Outcome] = field(default_factory=dict)
    failure: str = ""


def settings(models: list[str]) -> Iterator[Setting]:
    """Every model with and without checkpointing, on the machine and on half of what its items take."""
    for model in models:
        for tokens in TOKENS[model]:
            for checkpointing in (True, False):
                for share in (None, 0.5):
                    yield Setting(model, tokens, checkpointing, share)
    if "llama-7b" in models:
        yield Setting("llama-7b", 4096, checkpointing=True, share=0.5, fused=False)


def play(setting: Setting) -> Record:
    """Profile, plan and simulate; a step that can't run has its failure instead."""
    recipe = Recipe(PAGES.get(setting.model, 256 * MIB), fused=setting.fused, checkpointing=setting.checkpointing)
    trace = training_step(_profile(setting.model, setting.tokens), recipe)
    budget = H100.budget if setting.share is None else trace.transient + int(setting.share * trace.size)
    machine = TwoTier(H100.flops, H100.bandwidth, budget, H100.up, H100.down)
    about: dict[str, Any] = {
        "compute": sum(map(machine.seconds, trace.ops)),
        "items": trace.size,
        "transient": trace.transient,
    }
    try:
        room = machine.room(trace)
    except BudgetTooSmall as error:
        return Record(setting, failure=f"needs {error.needed / 1e9:.1f} GB", **about)
    if trace.size <= room:
        return Record(setting, room=room, failure="fits without spilling", **about)
    choice = choose(trace, machine, bounded=True)
    ours = simulate(trace, machine, paged(trace, room))
    others: dict[str, Outcome] = {}
    for policy in (min_on_demand(trace), *peers(trace, room)):
        outcome = simulate(trace, machine, policy)
        if policy.name not in others or outcome.seconds < others[policy.name].seconds:
            others[policy.name] = outcome
    return Record(setting, room=room, bound=choice.bound, ours=ours, best=choice.outcome, others=others, **about)


@cache
def _profile(model: str, tokens: int) -> Profile:
    return measure(model, tokens)
