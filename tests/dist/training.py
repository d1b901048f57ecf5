"""One training in two ways: sharded over the ranks, and in plain PyTorch in one process with all ranks' samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.optim.paged import PagedOptimizer, StateValues
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.models import Stack


@dataclass(frozen=True, slots=True)
class Sample:
    """Which micro-batch this is: its inputs are a pure function of the place."""

    rank: int
    step: int
    micro: int

    def inputs(self, *shape: int, salt: int = 0) -> Tensor:
        """Normal numbers, fp32."""
        seed = ((salt * 100 + self.micro) * 100 + self.step) * 100 + self.rank
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean_square(model: nn.Module, sample: Sample) -> Tensor:
    """The loss of a model that takes and gives one tensor."""
    output: Tensor = model(sample.inputs(4, 8))
    return output.float().square().mean()


def all_parameters(model: nn.Module) -> Iterable[Any]:
    """One group."""
    return model.parameters()


PLAIN_ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True)
OUR_ADAMW = partial(cd.AdamW, lr=1e-2, weight_decay=0.1)


@dataclass(frozen=True)
class Task:
    """What to train, and how. ``sums``: for each reduction of a step, how many micro-batches it sums."""

    make: Callable[[], nn.Module] = Stack
    loss: Callable[[nn.Module, Sample], Tensor] = mean_square
    groups: Callable[[nn.Module], Iterable[Any]] = all_parameters
    plain: Callable[..., Optimizer] = PLAIN_ADAMW
    paged: Callable[..., Optimizer] = OUR_ADAMW
    sums: tuple[int, ...] = (1,)
    steps: int = 3
    max_norm: float | None = None
    decay: bool = False
    after_backward: Callable[[nn.Module], None] | None = None
    at_end: Callable[[nn.Module], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Training:
    """What a training left: one rank's losses (all ranks' for the plain one), and the model's state at the end."""

    losses: list[float]
    norms: list[float]
    state: dict[str, Tensor]
    moments: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """This rank's optimizer state that has one value an element, and where it begins; not of the plain one."""


def made(task: Task, seed: int = 0) -> nn.Module:
    """The task's model with the values of ``seed``."""
    torch.manual_seed(seed)
    return task.make()


def train_sharded(task: Task, stage: int) -> Training:
    """Collective. Ranks start from different values: those of rank 0 have to be what counts."""
    model = cd.shard(made(task, seed=rank()), stage=stage, **task.options)
    optimizer = task.paged(task.groups(model))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    losses, norms = [], []
    for step in range(task.steps):
        micro = 0
        for count in task.sums:
            for last in (*[False] * (count - 1), True):
                with nullcontext() if last else cd.no_sync(model):
                    loss = task.loss(model, Sample(rank(), step, micro))
                    loss.backward()
                losses.append(loss.item())
                micro += 1
        if task.after_backward is not None:
            task.after_backward(model)
        if task.max_norm is not None:
            norms.append(cd.clip_grad_norm_(model, task.max_norm).item())
        optimizer.step()
        optimizer.zero_grad()
        if task.decay:
            schedule.step()
    if task.at_end is not None:
        task.at_end(model)
    trained = Training(losses, norms, cd.full_state_dict(model), _moments(optimizer))
    sharded_of(model).close()
    return trained


def _moments(optimizer: Optimizer) -> dict[str, dict[int, Tensor]]:
    assert isinstance(optimizer, PagedOptimizer)
    return {
        f"{flat.layout.slots[piece.index].name} {key}": {piece.start: value.read()}
        for flat, piece, state in optimizer.piece_states()
        for key, value in state.items()
        if isinstance(value, StateValues)
    }


def whole_moments(trainings: Iterable[Training]) -> dict[str, Tensor]:
    """Of all ranks' parts, by parameter and key."""
    parts: dict[str, dict[int, Tensor]] = {}
    for training in trainings:
        for name, part in training.moments.items():
            parts.setdefault(name, {}).update(part)
    return {name: torch.cat([part[start] for start in sorted(part)]) for name, part in parts.items()}


def train_plain(task: Task, world: int, *, at_once: bool = True) -> list[Training]:
    """The same in this process: one Training a rank.

    ``at_once``: every micro-batch's gradients are summed over the ranks, as stages 2 and 3 do; else ``sums`` tells.
    """
    torch.set_num_threads(1)
    model = made(task)
    optimizer = task.plain(task.groups(model))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    losses: list[list[float]] = [[] for _ in range(world)]
    norms = []
    sums = (1,) * sum(task.sums) if at_once or world == 1 else task.sums
    for step in range(task.steps):
        total: dict[nn.Parameter, Tensor] = {}
        micro = 0
        for count in sums:
            summed: dict[nn.Parameter, Tensor] = {}
            for other in range(world):
                for index in range(micro, micro + count):
                    loss = task.loss(model, Sample(other, step, index))
                    loss.backward()
                    losses[other].append(loss.item())
                _add(summed, _taken(model))
            _add(total, {parameter: value / world for parameter, value in summed.items()})
            micro += count
        for parameter, value in total.items():
            parameter.grad = value
        if task.max_norm is not None:
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), task.max_norm).item())
        optimizer.step()
        optimizer.zero_grad()
        if task.decay:
            schedule.step()
    state = {name: value.detach() for name, value in model.state_dict().items()}
    return [Training(own, norms, state if other == 0 else {}) for other, own in enumerate(losses)]


def _taken(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """The gradients, which the model loses."""
    taken = {p: p.grad for p in model.parameters() if p.grad is not None}
    for parameter in taken:
        parameter.grad = None
    return taken


def _add(sums: dict[nn.Parameter, Tensor], values: dict[nn.Parameter, Tensor]) -> None:
    for parameter, value in values.items():
        sums[parameter] = sums[parameter] + value if parameter in sums else value


def assert_equal(found: list[Training], expected: list[Training], tolerance: float = 0.0) -> None:
    """Losses of every rank, and the final state, which rank 0 has; bit for bit unless there is a tolerance."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.state.keys() == theirs.state.keys()
        torch.testing.assert_close(ours.losses, theirs.losses, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours.norms, theirs.norms * bool(ours.norms), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(ours.state, theirs.state, rtol=tolerance, atol=tolerance)
