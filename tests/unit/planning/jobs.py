"""Small models, machines and trainings for the tests of the planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.pages import page_bytes
from ciuic_dist.planning.profile import Pass, Profile, UnitProfile, extrapolate
from ciuic_dist.planning.training import Choice, Training

KIB, MIB = 1 << 10, 1 << 20
WAYS = st.sampled_from(list(Way))

PLAIN = Machine("plain", 1, 1, 64 * MIB, 1e9, 1e9, 1e9, 0.0)
"""One device of a gigaflop and a gigabyte a second, and no tier below."""


def machine(memory: int = 64 * MIB, *, nodes: int = 1, devices: int = 1, link: float = 1e9, host: int = 0) -> Machine:
    """`PLAIN` with links of one rate, everywhere."""
    where = replace(PLAIN, memory=memory, nodes=nodes, devices=devices, peers=link, network=link)
    return replace(where, host=host, up=link, down=link) if host else where


def stack(blocks: Sequence[int], root: int, *, seconds: float = 1.0, bytes_each: int = 1000) -> Profile:
    """Blocks of so many parameters; on `PLAIN` a forward of each takes ``seconds``, a backward twice as many.

    A block saves ``bytes_each`` bytes, its input a fifth of them, and has as many more at its peak.
    """
    units = (*(UnitProfile(f"block {index}", count) for index, count in enumerate(blocks)), UnitProfile("root", root))
    work, last = seconds * 1e9, len(blocks)
    inputs = bytes_each // 5
    one = Pass(0, False, work, bytes_each, inputs, bytes_each - inputs, ops=1, above=2 * bytes_each, net=bytes_each)
    forward = [Pass(last, False, 0.0), *(replace(one, unit=unit) for unit in range(last)), Pass(last, False, work / 4)]
    backward = [
        Pass(p.unit, True, 2 * p.flops, ops=1, above=bytes_each // 2 if p.net else 0, net=-p.net)
        for p in reversed(forward)
    ]
    return Profile(units, (*forward, *backward))


def kept(
    profile: Profile, stage: int = 0, accumulation: int = 1, gathered: int = 0, group: int | None = None
) -> Choice:
    """Micro-batches of one whose activations stay."""
    return Choice(stage, 1, accumulation, (Way.KEEP,) * profile.root, gathered=gathered, group=group)


def per_sequence(profile: Profile) -> Callable[[int], Profile]:
    """``profile`` for one sequence; two cost twice as much."""
    passes = tuple(
        replace(
            p,
            flops=2 * p.flops,
            saved=2 * p.saved,
            inputs=2 * p.inputs,
            remade=2 * p.remade,
            streamed=2 * p.streamed,
            touched=2 * p.touched,
            above=2 * p.above,
            net=2 * p.net,
        )
        for p in profile.passes
    )
    return cache(lambda batch: extrapolate(profile, Profile(profile.units, passes), (1, 2), batch))


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Up to four blocks, of sizes that matter beside a page, with activations from few to many."""
    blocks = draw(st.lists(st.integers(1, 400_000), max_size=4))
    root = draw(st.integers(1, 400_000))
    seconds = draw(st.sampled_from([1e-6, 1e-4, 1e-2]))
    return stack(blocks, root, seconds=seconds, bytes_each=draw(st.sampled_from([0, 1000, 100_000, 1_000_000])))


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """One to eight devices, any tiers below, links quick and slow."""
    rate = st.sampled_from([1e6, 1e8, 1e10])
    host, nvme = (draw(st.sampled_from([0, 100 * KIB, 1000 * MIB])) for _ in range(2))
    return Machine(
        name="drawn",
        nodes=draw(st.sampled_from([1, 2])),
        devices=draw(st.sampled_from([1, 2, 4])),
        memory=4 * MIB,
        bf16=1e9,
        fp32=5e8,
        bandwidth=1e9,
        launch=1e-6,
        peers=draw(rate),
        network=draw(rate),
        latency=draw(st.sampled_from([0.0, 1e-3])),
        host=host,
        up=draw(rate) if host else 0.0,
        down=draw(rate) if host else 0.0,
        duplex=draw(st.booleans()),
        nvme=nvme,
        read=draw(rate) if nvme else 0.0,
        write=draw(rate) if nvme else 0.0,
        moving=draw(st.sampled_from([0.0, 1e-10, 1e-7])),
        showing=draw(st.sampled_from([0.0, 1e-9])),
        shared=draw(st.booleans()),
    )


@st.composite
def trainings(draw: st.DrawFn, world: int) -> Training:
    """Of so many ranks."""
    return Training(
        world * draw(st.sampled_from([1, 2, 4])),
        8,
        draw(st.sampled_from(["bf16", "fp32"])),
        draw(st.sampled_from(["fp32", "8bit"])),
        clips=draw(st.booleans()),
    )


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Profile, Machine, Training]:
    """What to train where; from what nothing fits to what all does."""
    profile, where = draw(profiles()), draw(machines())
    memory = int(profile.parameters * draw(st.sampled_from([1, 4, 8, 11, 14, 30]))) + draw(st.integers(0, 300 * KIB))
    return profile, replace(where, memory=memory), draw(trainings(where.world))


@st.composite
def choices(draw: st.DrawFn, profile: Profile, where: Machine) -> Choice:
    """Any way to do it."""
    stage = draw(st.integers(0, 3)) if where.world > 1 else 0
    ways = tuple(draw(st.lists(WAYS, min_size=profile.root, max_size=profile.root)))
    below = bool(where.host or where.nvme) and draw(st.booleans())
    if not below:
        ways = tuple(Way.RECOMPUTE if way is Way.OFFLOAD else way for way in ways)
    gathered = draw(st.integers(0, profile.root)) if stage == 3 else 0
    able = stage and where.nodes > 1 and where.devices > 1
    group = draw(st.sampled_from([None, where.devices])) if able else None
    return Choice(stage, 1, draw(st.integers(1, 3)), ways, below, gathered, group)


def page_of(where: Machine) -> int:
    """Bytes of a page of its devices."""
    return page_bytes(where.memory, 4 * MIB if where.shared else 32 * MIB)
