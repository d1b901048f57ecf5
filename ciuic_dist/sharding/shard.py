"""``shard``: from any module to one whose parameters, gradients and optimizer state are spread over the ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from math import ceil, floor
from os import PathLike

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ciuic_dist.comm import groups
from ciuic_dist.comm.agreement import agree
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.comm.shared import open_pool
from ciuic_dist.comm.together import together
from ciuic_dist.hub import commits
from ciuic_dist.memory.budget import BudgetError, Memory
from ciuic_dist.models.deferred import defer, recipe_of
from ciuic_dist.models.pretrained import WholePretrained, pretrained
from ciuic_dist.monitor.units import size_text
from ciuic_dist.planning.pages import PAGED_SHARD_MULTIPLE
from ciuic_dist.planning.plan import Plan
from ciuic_dist.sharding.exchange.base import Exchange
from ciuic_dist.sharding.exchange.board import BoardLayout
from ciuic_dist.sharding.exchange.collective import CollectiveExchange
from ciuic_dist.sharding.exchange.local import LocalExchange
from ciuic_dist.sharding.exchange.mailbox import MailboxLayout
from ciuic_dist.sharding.exchange.shared import SharedExchange, page_rounded
from ciuic_dist.sharding.exchange.spilled import shards_of
from ciuic_dist.sharding.fill import fill
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.guards import guard
from ciuic_dist.sharding.hooks import install
from ciuic_dist.sharding.layout import SHARD_MULTIPLE, divide, lay_out
from ciuic_dist.sharding.planned import memory_of, staying, wishes_of
from ciuic_dist.sharding.registry import is_sharded, register
from ciuic_dist.sharding.sharded import Sharded
from ciuic_dist.sharding.spill import Spill
from ciuic_dist.sharding.unit import Unit, UnitState
from ciuic_dist.sharding.units import UnitRule, UnitSpec, find_units

_Named = tuple[str, nn.Parameter]
_Kind = tuple[str, bool, bool]

PRECISIONS = {None: None, "bf16": torch.bfloat16}


def shard(
    model: nn.Module,
    stage: int = 3,
    memory: Memory | None = None,
    mixed_precision: str | None = None,
    units: UnitRule = None,
    plan: Plan | None = None,
    weights: str | PathLike[str] | None = None,
    group: int | None = None,
) -> nn.Module:
    """Shard ``model`` in place over the ranks of ``init`` and return it; every rank calls it alike.

    ``stage``: what is sharded: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters.
    ``mixed_precision``: "bf16" computes in bf16 (batch norms apart) with masters in the parameters' own dtype;
    None in that dtype.
    ``units``: which modules are gathered together: class names, a predicate, or None for the repeated blocks.
    Rank 0's values count; a model on the meta device gets those that its own initialisation would give.

    ``memory``: what each tier may hold; None: all the device has, nothing is spilled.
    ``plan``: says the stage, the group and the precision, the budgets as far as ``memory`` doesn't, which units stay
    full, and what becomes of each one's activations. Micro-batches are the loop's own, and so is recomputing everything
    (``plan.recompute``), by the model's means.
    ``group``: so many ranks, the next ones by number, shard among themselves, and each such group has a replica, as
    where they are a node's: gathers stay within it, and only what a rank keeps of the gradients leaves it, once a step.
    None: all ranks are one, or as ``plan`` says.
    ``weights``: where the values of a model of transformers on the meta device lie, a hub id or a folder. Each rank
    reads its own slices of safetensors, as ``from_pretrained`` would have them; other files whole.

    Raises ValueError for arguments that can't be, for a plan or ``weights`` of another model or ``weights`` that a hub
    doesn't give, BudgetError for a budget that can't be met, Disagreement where ranks pass different models or
    arguments; nothing is allocated before.
    """
    specs = find_units(model, units)
    stays: frozenset[str] = frozenset()
    if plan is not None:
        stays = staying(plan, [spec.name for spec in specs if spec.name])
        stage = plan.stage
        group = plan.group if group is None else group
        mixed_precision = mixed_precision or ("bf16" if plan.training.precision == "bf16" else None)
    _check(model, stage, mixed_precision)
    groups.init(groups.timeout_seconds())
    mesh, ranks_on_host = _mesh(stage, group), _ranks_on_host()
    if weights is not None:
        _find_weights(model, str(weights))
    device = groups.device()
    budget = memory if plan is None else memory_of(plan, memory, ranks_on_host)
    spill = _spill(budget, ranks_on_host, planned=plan is not None)
    if spill is not None and device.type == "cpu":
        _check_reading(model, spill.budget)
    shards, own = (mesh.size, mesh.place) if stage else (1, 0)
    compute_dtype = PRECISIONS[mixed_precision]
    made = [_make_unit(i, spec, shards, own, compute_dtype, device, spill) for i, spec in enumerate(specs)]
    described = _describe(made, stage, mixed_precision)
    asked = {"memory": str(memory), "plan": plan and plan.digest, "weights": commits.get(str(weights)), "group": group}
    agree("sharded model", described | asked)
    flats = [flat for unit in made for flat in unit.flats]
    exchange = _choose_exchange(model, made, mesh, stage, device, spill)
    exchange.place(flats)
    if spill is not None:
        if exchange.together:
            spill.slots_below = -exchange.largest(-spill.slots_below)
        spill.begin(exchange.usage(), [shards_of(unit) for unit in made])
    _begin(made, exchange, stays if spill is None else frozenset())
    fill(model, flats, device)
    if spill is not None:
        _end_filling(spill, flats, exchange)
    exchange.after_update()
    sharded = Sharded(model, made, exchange, mesh, stage=stage, spill=spill, wishes=wishes_of(plan))
    sharded.compute_dtype = compute_dtype
    install(sharded)
    guard(model, releases=not exchange.keeps_full)
    register(sharded)
    model.zero_grad = partial(_zero_grad, sharded)  # type: ignore[method-assign]
    return model


def _begin(units: Sequence[Unit], exchange: Exchange, stays: frozenset[str]) -> None:
    for unit in units:
        unit.keep_full = exchange.keeps_full or unit.name in stays
        if exchange.gathers:
            unit.move(UnitState.SHARDED)


def _mesh(stage: int, group: int | None) -> Mesh:
    mesh = Mesh(group)
    if mesh.replicas > 1 and (stage == 0 or mesh.size == 1):
        raise ValueError(f"group={group} at stage {stage} shards nothing: use stage=0 without group, or larger groups")
    return mesh


def _ranks_on_host() -> int:
    return groups.gather_objects(groups.host_identity()).count(groups.host_identity())


def _spill(memory: Memory | None, ranks_on_host: int, *, planned: bool) -> Spill | None:
    if not isinstance(memory, Memory | None):
        raise TypeError(f"memory must be a cd.Memory, such as cd.Memory(device='2GiB'), not {memory!r}")
    if memory is None:
        return None
    budgets = memory.resolve(ranks_on_host)
    below = [name for name in ("host", "nvme") if getattr(memory, name) is not None]
    if budgets.device is None and below and not planned:
        raise BudgetError(f"memory.{below[0]} is for what a budget leaves over: give memory.device as well, or a plan")
    return None if budgets.device is None else Spill(budgets, groups.device())


def _end_filling(spill: Spill, flats: Sequence[Flat], exchange: Exchange) -> None:
    spill.homes.write_behind = True  # filling comes back to a shard for each of its parameters
    for flat in flats:
        if flat.home is not None:
            flat.detach()
    spill.weigh_the_rest(exchange.usage() - exchange.shared_bytes())


def _check(model: nn.Module, stage: int, mixed_precision: str | None) -> None:
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage must be 0, 1, 2 or 3, got {stage!r}")
    if mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision must be None or 'bf16', got {mixed_precision!r}")
    if is_sharded(model):
        raise ValueError("this model, or a part of it, is sharded already")
    if next(model.parameters(), None) is None:
        raise ValueError("this model has no parameters to shard")


def _find_weights(model: nn.Module, path: str) -> None:
    seed = groups.gather_objects(torch.initial_seed())[0]  # of what the files lack
    with together():
        if not all(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("weights= is for a model without values: build it under torch.device('meta')")
        if not hasattr(type(model), "from_pretrained"):
            raise ValueError(f"weights= is for models of transformers, and {type(model).__name__} is none")
        defer(model, pretrained(model, path, seed))


def _check_reading(model: nn.Module, budget: int) -> None:
    recipe = recipe_of(model)
    if isinstance(recipe, WholePretrained) and recipe.nbytes > budget:
        raise BudgetError(
            f"memory.device is {size_text(budget, floor)} and reading these weights takes "
            f"{size_text(recipe.nbytes, ceil)}, as they aren't in safetensors or can't be converted one by one: "
            f"save them anew with transformers' save_pretrained"
        )


def _make_unit(
    index: int,
    spec: UnitSpec,
    world: int,
    owner: int,
    compute_dtype: torch.dtype | None,
    device: torch.device,
    spill: Spill | None,
) -> Unit:
    exact = exact_parameters(spec.module)

    def kind(item: _Named) -> _Kind:
        parameter = item[1]
        casts = compute_dtype is not None and parameter.is_floating_point() and parameter not in exact
        return str(parameter.dtype), parameter.requires_grad, casts

    flats = []
    multiple = SHARD_MULTIPLE if spill is None else PAGED_SHARD_MULTIPLE
    for (dtype, trainable, casts), named in _groups(spec, kind, None if spill is None else spill.flat_bytes(world)):
        layout = lay_out([(name, tuple(p.shape)) for name, p in named], world, shard_multiple=multiple)
        own = named[0][1].dtype
        name = f"{spec.name or 'the root unit'} ({dtype}{'' if trainable else ', frozen'})"
        flats.append(
            Flat(
                name,
                [p for _, p in named],
                layout,
                owner=owner,
                compute_dtype=compute_dtype if casts and compute_dtype is not None else own,
                device=device,
                paging=spill,
                spills=spill is not None and bool(spec.name),
            )
        )
    return Unit(index, spec.name, spec.module, flats)


def _groups(
    spec: UnitSpec, kind: Callable[[_Named], _Kind], least_bytes: int | None
) -> Iterator[tuple[_Kind, list[_Named]]]:
    """The parameters of each kind, all together or in runs of ``least_bytes``."""
    for key, members in groupby(sorted(spec.parameters.items(), key=kind), key=kind):
        named = list(members)
        sizes = [parameter.nbytes for _, parameter in named]
        for run in [slice(None)] if least_bytes is None else divide(sizes, least_bytes):
            yield key, named[run]


def exact_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that keep their dtype: kernels take those of batch norms only in that of the running statistics."""
    norms = (module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats)
    return {parameter for norm in norms for parameter in norm.parameters(recurse=False)}


def _describe(units: Sequence[Unit], stage: int, mixed_precision: str | None) -> dict[str, object]:
    parameters = {
        slot.name: f"{list(slot.shape)} {flat.name}{' on meta' if parameter.is_meta else ''}"
        for unit in units
        for flat in unit.flats
        for slot, parameter in zip(flat.layout.slots, flat.parameters, strict=True)
    }
    return {
        "stage": stage,
        "mixed_precision": mixed_precision,
        "torch": torch.__version__,
        "units": [unit.name for unit in units],
        "parameters": parameters,
    }


def _choose_exchange(
    model: nn.Module, units: Sequence[Unit], mesh: Mesh, stage: int, device: torch.device, spill: Spill | None
) -> Exchange:
    world = mesh.size
    if world == 1:
        return LocalExchange(spill)
    hosts = groups.gather_objects(groups.host_identity())
    same_host = all(len(set(hosts[first : first + world])) == 1 for first in range(0, len(hosts), world))
    can_share = device.type == "cpu" and (spill is None or spill.frames_file is not None)
    if not can_share or not same_host:
        return CollectiveExchange(mesh, stage=stage, spill=spill)
    trainable = [flat for unit in units for flat in unit.trainable]
    in_turn = stage > 1 or spill is not None
    own_slot = [flat for unit in units if unit.module is model for flat in unit.trainable] if in_turn else trainable
    board = BoardLayout(units, world, 0 if spill is None else spill.page_bytes)
    mailbox = MailboxLayout(trainable, own_slot, board.nbytes)
    flats = [flat for unit in units for flat in unit.flats]
    common = sum(page_rounded(flat.full_bytes) for flat in flats if not flat.spills) if stage else 0
    frames = None if spill is None else spill.frames_file
    spilled = 0 if spill is None else min(sum(flat.full_bytes for flat in flats if flat.spills), world * spill.budget)
    pools = hosts.count(groups.host_identity()) // world
    pool = open_pool(mesh, common, mailbox.nbytes, frames, spilled, pools=pools)
    if isinstance(pool, OSError):
        warnings.warn(f"ranks on this host will send instead of sharing memory, which is slower: {pool}", stacklevel=3)
        return CollectiveExchange(mesh, stage=stage, spill=spill)
    return SharedExchange(pool, mailbox, board, mesh, share_full=stage > 0, spill=spill)


def _zero_grad(sharded: Sharded, set_to_none: bool = True) -> None:
    """Drop all gradients; stands in for the module's own, which looks at ``parameter.grad``."""
    for flat in sharded.flats:
        flat.zero_grad()
