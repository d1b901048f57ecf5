"""What a plan says about sharding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from ciuic_dist.memory.budget import BudgetError, Memory
from ciuic_dist.monitor.units import size_text
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.plan import Plan, PlanError


def memory_of(plan: Plan, memory: Memory | None, ranks_on_host: int) -> Memory | None:
    """The budgets of ``plan``; ``memory`` goes before it where it says something, and knows the folder of NVMe.

    Raises BudgetError where a folder is missing.
    """
    if not plan.spills:
        return memory
    given = memory or Memory()
    if plan.nvme and given.nvme is None:
        raise BudgetError(
            f"this plan spills {size_text(plan.nvme, ceil)} to NVMe: name the folder, as "
            f"memory=cd.Memory(nvme='/folder:size') or memory.nvme=/folder:size"
        )
    keeps = all(unit.activations is Way.KEEP for unit in plan.units)
    way = str(Way.KEEP) if keeps and given.activations == "auto" else given.activations
    device = plan.device if given.device is None else given.device
    planned_host = plan.host // plan.machine.devices * ranks_on_host
    host = (planned_host or None) if given.host is None else given.host
    return replace(given, device=device, host=host, activations=way)


def wishes_of(plan: Plan | None) -> list[Way] | None:
    """What is to become of each unit's activations, the root's last; None where nothing goes to lower tiers."""
    return [unit.activations for unit in plan.units] if plan is not None and plan.choice.below else None


def staying(plan: Plan, units: Sequence[str]) -> frozenset[str]:
    """Names of the units that stay full from their forward to the update. Raises PlanError for another model's plan.

    ``units``: the model's, without the root.
    """
    planned = [unit.name for unit in plan.units[:-1]]
    if planned != list(units):
        first = next((name for name in (*units, *planned) if (name in units) != (name in planned)), "their order")
        raise PlanError(
            f"the plan is for {plan.model}, with {len(planned)} units, and this model has {len(units)}: the first "
            f"difference is {first}; make a plan for this model, with the same units="
        )
    return frozenset(unit.name for unit in plan.units[:-1] if unit.gathered)
