"""``cd.plan``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ciuic_dist.estimate.here import Here
from ciuic_dist.estimate.job import within
from ciuic_dist.estimate.machines import PROBE, load
from ciuic_dist.estimate.planner import make_plan
from ciuic_dist.estimate.workload import Batch, given, profiles
from ciuic_dist.memory.budget import Memory
from ciuic_dist.models.on_meta import OnMeta
from ciuic_dist.planning.choices import Limits
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.training import Training
from ciuic_dist.sharding.shard import PRECISIONS
from ciuic_dist.sharding.units import UnitRule


def plan(
    model: nn.Module | Callable[[], nn.Module],
    machine: str | Machine,
    batch: Batch,
    *,
    sequences: int,
    memory: Memory | None = None,
    stage: int | None = None,
    group: int | None = None,
    mixed_precision: str | None = None,
    units: UnitRule = None,
    clips: bool = True,
) -> Plan:
    """The best way to train ``model`` on ``machine``, and what it takes. Nothing of it is allocated or computed.

    ``model``: a module, also on meta, or what makes one, whose tensors go to meta without its noticing. ``machine``: a
    name such as "8xh100", the path of a YAML file, a Machine, or "probe" for the ranks of ``init``, which then all call
    this and measure what isn't known of them. ``batch``: what a forward is given for one sample (a tensor, several, or
    a dict by name), of which the shapes count, and the values of integers; ``sequences``: samples of a step, over all
    ranks. ``memory``: what tiers may hold, where that is less than the machine has. ``stage`` None: to be chosen.
    ``group``: so many ranks shard among themselves, as in ``cd.shard``; None: to be chosen.
    ``clips``: gradients are clipped, so nothing is updated before the backward is over.

    Raises ConfigError for a machine that there isn't, BudgetError where nothing fits, with the least that would,
    ValueError where ``sequences`` or ranks can't be divided, and for a stage or precision that there isn't.
    """
    if stage not in (None, 0, 1, 2, 3) or mixed_precision not in PRECISIONS:
        raise ValueError(f"stage must be 0 to 3 and mixed_precision None or 'bf16', not {stage!r}, {mixed_precision!r}")
    module = model if isinstance(model, nn.Module) else _made(model)
    here = Here(memory or Memory()) if machine == PROBE else None
    where = here.machine if here else load(machine) if isinstance(machine, str) else machine
    if group not in (None, where.world) and (stage == 0 or group not in range(2, where.world) or where.world % group):
        raise ValueError(
            f"group={group!r} must be None or a divisor of the {where.world} ranks, 2 at the least, at stage 1 or more"
        )
    allowed = within(where, memory or Memory())
    args, kwargs = given(batch)
    length = max((value.shape[1] for value in (*args, *kwargs.values()) if value.dim() > 1), default=1)
    precision = mixed_precision or "fp32"
    training = Training(sequences, length, precision, clips=clips)
    profile_of = profiles(
        module,
        batch,
        precision=mixed_precision,
        units=units,
        fused_attention=here is None and not where.shared,
        most=max(1, sequences // where.world),
        clock=here.clock if here else None,
    )
    made = make_plan(type(module).__name__, profile_of, allowed, training, Limits(stage, group=group))
    if here:
        here.remember()
    return made


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    with OnMeta():
        return make()
