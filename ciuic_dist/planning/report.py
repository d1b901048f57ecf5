"""A plan in words and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from ciuic_dist.monitor.units import duration_text, size_text
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan, UnitPlan


def describe(plan: Plan) -> str:
    """All of it, for a terminal."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    parameters = sum(unit.parameters for unit in plan.units)
    training, predicted = plan.training, plan.predicted
    yield f"{plan.model}: {_parameters(parameters)}, {training.precision}, on {_machine(plan.machine)}"
    yield (
        f"a step: {training.sequences} sequences of {training.length} tokens, "
        f"{'clipped' if training.clips else 'updated in the backward'}, {training.state_dtype} optimizer state"
    )
    yield ""
    yield "plan"
    yield f"  stage              {plan.stage}{_stage(plan)}"
    if plan.group is not None:
        replicas = plan.machine.world // plan.group
        yield f"  groups             of {plan.group} ranks, each with one of {replicas} replicas"
    yield f"  micro-batch        {plan.micro_batch}, {plan.accumulation} a step on each rank"
    yield f"  activations        {_activations(plan)}"
    if plan.stage == 3 and plan.machine.world > 1:
        full = sum(unit.gathered for unit in plan.units[:-1])
        yield f"  stay gathered      {full} of {len(plan.units) - 1} units"
    for kind, tiers in plan.residency.items():
        yield f"  {kind:<24}{', '.join(f'{size_text(nbytes)} on {tier}' for tier, nbytes in tiers.items())}"
    yield ""
    yield "predicted, for each rank"
    for tier, nbytes in predicted.peak.items():
        room = {"device": plan.machine.memory, "host": plan.machine.node_host, "nvme": plan.machine.node_nvme}[tier]
        yield f"  peak on {tier:<11}{size_text(nbytes)} of {size_text(room)}"
    yield f"  step               {duration_text(predicted.seconds)}, {predicted.tokens_per_second:,.0f} tokens/s in all"
    yield f"  of in-memory speed {predicted.of_in_memory:.0%}"
    yield f"  lower bound        {duration_text(predicted.bound)}: {predicted.limit}"
    for resource, needed in predicted.resources.items():
        yield f"    {resource:<25}{duration_text(needed)}"
    for link, moved in predicted.traffic.items():
        yield f"  traffic {link:<19}{size_text(moved)} a step"
    if plan.advice:
        yield ""
        yield "would help: " + "; ".join(f"{entry.change}: +{entry.gain:.0%}" for entry in plan.advice[:3])


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f}B parameters" if count >= 1e8 else f"{count / 1e6:.2f}M parameters"


def _machine(machine: Machine) -> str:
    nodes = f"{machine.nodes} nodes of " if machine.nodes > 1 else ""
    devices = f"{machine.devices} devices" if machine.devices > 1 else "one device"
    return f"{machine.name}: {nodes}{devices} with {size_text(machine.memory)} each"


def _stage(plan: Plan) -> str:
    what = ("nothing is sharded", "optimizer state is sharded", "gradients too are sharded", "all is sharded")
    return f" ({what[plan.stage]})" if plan.machine.world > 1 else ""


def _activations(plan: Plan) -> str:
    runs = [(way, len(list(run))) for way, run in groupby(plan.units[:-1], key=_way)]
    if len(runs) == 1:
        return f"{runs[0][0]} all"
    return ", then ".join(f"{way} {count} units" for way, count in runs) or "keep all"


def _way(unit: UnitPlan) -> str:
    return str(unit.activations)
