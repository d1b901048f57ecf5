"""The end of a step, all of it on one axis of time: computation, collectives, transfers, and bytes in each tier."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from ciuic_dist.planning.footprint import levels, lowered_levels
from ciuic_dist.planning.forecast import Forecast, forecast
from ciuic_dist.planning.lanes import Stretch, stretches
from ciuic_dist.planning.levels import Levels
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.spilling import timeline
from ciuic_dist.planning.timeline import Span, Timeline
from ciuic_dist.planning.trace import Kind
from ciuic_dist.planning.training import Choice, Training

ACTIVATIONS, BUFFERS = "activations", "buffers"
"""What lies in the tiers beside the kinds of items. Buffers: the root unit, units in use, gradients on their way."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The last micro-batch of a step and the update, on one rank."""

    timeline: Timeline
    """Passes and updates; activations and buffers are among what lies in the tiers."""
    gathers: tuple[Span, ...]
    reductions: tuple[Span, ...]
    missing: str
    """What moves between tiers and is not here; empty where all of it is."""


def schedule(profile: Profile, machine: Machine, training: Training, choice: Choice) -> Schedule:
    """Of a choice that fits. Raises DoesNotFit.

    Activations that lower tiers hold slow other transfers down, and have none here themselves. A collective begins
    and ends in the pass in which it would without transfers; a pass counts up to the next one.
    """
    expected = forecast(profile, machine, training, choice)
    last = stretches(profile, machine, training, choice)[-1]
    played = timeline(profile, machine, training, choice, expected)
    found = _resting(last, expected) if played is None else _end(played, len(profile.passes))
    passes = [op for op in found.ops if _passes(op)]
    through = _through(last)
    moved = _warp(_joints(last, through), _joints(passes, passes[-1].end if played else through))
    return Schedule(
        _with_activations(found, passes, profile, choice, expected.footprint.fixed),
        tuple(Span(s.name, *map(moved, s.gather)) for s in last if s.gather),
        tuple(Span(s.name, *map(moved, s.reduce)) for s in last if s.reduce),
        _missing(expected, played),
    )


def _missing(expected: Forecast, played: Timeline | None) -> str:
    spilled = expected.spilled
    if played is None and spilled.total > spilled.activations:
        return "transfers"
    return "transfers of activations" if spilled.activations else ""


def _resting(passes: tuple[Stretch, ...], expected: Forecast) -> Timeline:
    """Without transfers: everything stays where it is."""
    through, spilled, needs = _through(passes), expected.spilled, expected.footprint
    total = {
        Kind.PARAMETER: (needs.parameters, spilled.parameters),
        Kind.STATE: (needs.state, spilled.state),
        Kind.GRADIENT: (needs.gradients, spilled.gradients),
    }
    return Timeline(
        through + expected.updating,
        (*(Span(s.name, s.start, s.end) for s in passes), Span("update", through, through + expected.updating)),
        Levels((0.0,), {kind: (both - away,) for kind, (both, away) in total.items()}),
        Levels((0.0,), {kind: (away,) for kind, (_, away) in total.items()}),
    )


def _through(passes: tuple[Stretch, ...]) -> float:
    """When the last of them has computed and is reduced."""
    return max(passes[-1].end, *(s.reduce[1] for s in passes if s.reduce), 0.0)


def _end(played: Timeline, passes: int) -> Timeline:
    """From where the micro-batch of the last so many passes begins, or its first pass begins to wait."""
    first = [index for index, op in enumerate(played.ops) if _passes(op)][-passes]
    return played.last(len(played.ops) - first)


def _passes(op: Span) -> bool:
    return not op.name.startswith("update")


def _joints(passes: tuple[Stretch, ...] | list[Span], end: float) -> list[float]:
    return [0.0, *(p.start for p in passes), end]


def _warp(of: list[float], to: list[float]) -> Callable[[float], float]:
    """From the time that has the joints ``of`` to the one that has the joints ``to``, linearly in between."""

    def moved(moment: float) -> float:
        at = min(bisect_right(of, moment), len(of) - 1)
        length = of[at] - of[at - 1]
        part = (moment - of[at - 1]) / length if length else 1.0
        return to[at - 1] + part * (to[at] - to[at - 1])

    return moved


def _with_activations(found: Timeline, passes: list[Span], profile: Profile, choice: Choice, buffers: int) -> Timeline:
    """Activations on the device are at their peak as long as a pass runs."""
    alive = list(levels(profile, choice))
    device = {0.0: 0}
    for p, (_, peak), (left, _) in zip(passes, alive, [*alive[1:], (0, 0)], strict=True):
        device |= {p.start: peak, p.end: left}
    below = {0.0: 0, **{p.start: nbytes for p, nbytes in zip(passes, lowered_levels(profile, choice), strict=True)}}
    below[passes[-1].end] = 0
    fixed = Levels((0.0,), {BUFFERS: (buffers,)})
    return replace(
        found,
        device=fixed.beside(found.device).beside(_activations(device)),
        below=found.below.beside(_activations(below)),
    )


def _activations(nbytes: dict[float, int]) -> Levels:
    return Levels(tuple(nbytes), {ACTIVATIONS: tuple(nbytes.values())})
