"""What one choice takes, as far as the engine can follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ciuic_dist.planning.choices import ProfileOf
from ciuic_dist.planning.footprint import footprint
from ciuic_dist.planning.forecast import Forecast, forecast_if_it_fits
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.spilling import with_transfers
from ciuic_dist.planning.training import Choice, Training


@dataclass(frozen=True, slots=True)
class Found:
    """A choice and what it takes."""

    choice: Choice
    forecast: Forecast


def glance(choice: Choice, profile_of: ProfileOf, machine: Machine, training: Training) -> Forecast | None:
    """Its forecast in closed form, which no played one undercuts.

    None where it doesn't fit, or asks for what the engine doesn't do: units stay gathered only without a budget.
    """
    profile = profile_of(choice.micro_batch)
    found = forecast_if_it_fits(profile, machine, training, choice)
    if found is None or (choice.gathered and found.spills):
        return None
    if not choice.divided:
        return found
    needs = footprint(profile, training, choice, machine, spills=True)  # it takes a budget that is divided
    return None if needs.total > machine.memory else replace(found, spills=True, footprint=needs, device=needs.total)


def look(
    choice: Choice, profile_of: ProfileOf, machine: Machine, training: Training, *, under: float = math.inf
) -> Found | None:
    """The same with its transfers played; None also where it surely takes ``under`` seconds or more."""
    expected = glance(choice, profile_of, machine, training)
    if expected is None or expected.seconds >= under:
        return None
    return Found(choice, with_transfers(profile_of(choice.micro_batch), machine, training, choice, expected))
