"""From the best of a grid to the best near it: how many units keep their activations, and how many offload them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.choices import ProfileOf
from ciuic_dist.planning.look import Found, look
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.training import Choice, Training
from ciuic_dist.planning.ways import mixed

_FINER = 8
"""Into so many steps units are divided at first: half of the grid's."""
_WORTH = 0.001
"""The least gain that is taken: smaller ones are within what a forecast rounds."""


def refined(found: Found, profile_of: ProfileOf, machine: Machine, training: Training) -> Found:
    """The best that is reached from ``found`` step by step, each to the quickest neighbour; in the end by one unit.

    Only where activations go to lower tiers, whose units may each have a way of their own.
    """
    step = -(-len(found.choice.ways) // _FINER) if found.choice.below else 0
    while step:
        under = found.forecast.seconds * (1 - _WORTH)
        near = (look(choice, profile_of, machine, training, under=under) for choice in _neighbours(found.choice, step))
        quicker = [other for other in near if other and other.forecast.seconds < under]
        if quicker:
            found = min(quicker, key=lambda other: other.forecast.seconds)
        else:
            step //= 2
    return found


def _neighbours(choice: Choice, step: int) -> Iterator[Choice]:
    units, kept, offloaded = len(choice.ways), choice.ways.count(Way.KEEP), choice.ways.count(Way.OFFLOAD)
    for more, leaves in ((step, 0), (-step, 0), (0, step), (0, -step), (step, -step), (-step, step)):
        stay, leave = kept + more, offloaded + leaves
        if 0 <= stay < units and 0 <= leave <= units - stay:
            yield replace(choice, ways=mixed(units, stay, leave))
