"""Activations that are kept, offloaded or recomputed: equal to the last bit, in no more memory than was allowed."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ciuic_dist as cd
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.file import FileTier
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.tier import PageError, Tier
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import launch
from tests.dist.models import Block, Recomputing, RecomputingTogether, Stack
from tests.dist.spilling import Spilled, assert_same_bits, train_spilled
from tests.dist.test_spill_faults import flip_every_page
from tests.dist.training import OUR_ADAMW, Sample, Task, train_sharded

ROWS, WIDTH, INNER, BLOCKS = 512, 48, 200, 6
ALL = BLOCKS * 2 * (WIDTH + INNER) * ROWS * 4
"""Bytes that the blocks save at least: the input, its norm, what goes into the activation and what comes out."""
PAGE = 8 << 10


class Dropping(Block):
    """A block with dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(super().forward(x), 0.1, self.training)


class Deep(Stack):
    """Six blocks of 19 thousand parameters."""

    def __init__(self, make_block: Callable[..., nn.Module] = Block, kind: type[Stack] = Stack) -> None:
        super().__init__(WIDTH, INNER, make_block)
        self.blocks.extend(make_block(WIDTH, INNER) for _ in range(BLOCKS - 3))
        self.run = partial(kind.run, self)  # type: ignore[method-assign]


def loss_of(model: nn.Module, sample: Sample) -> Tensor:
    """A batch large enough for activations to count, with the same dropout however often it is drawn."""
    torch.manual_seed(sample.step * 10 + sample.micro)
    output: Tensor = model(sample.inputs(ROWS, 8))
    return output.float().square().mean()


TASK = Task(partial(Deep, Dropping), loss_of, steps=4)


def below(folder: Path, device: str = "3MB", activations: str = "auto") -> cd.Memory:
    """Blocks save 6.1 MB beside their parameters; the least of everything else is some 2 MB."""
    return cd.Memory(device=device, nvme=f"{folder}:64MB", activations=activations)


def assert_equal_under(memory: cd.Memory, task: Task = TASK, stage: int = 3, world: int = 1) -> list[Spilled]:
    free = launch(train_sharded, task, stage, world=world)
    found: list[Spilled] = launch(train_and_count, replace(task, options={**task.options, "memory": memory}), stage,
                                  world=world)  # fmt: skip
    assert_same_bits([spilled.training for spilled in found], free)
    return found


def train_and_count(task: Task, stage: int) -> Spilled:
    ways: list[dict[str, int]] = []
    task = replace(task, after_backward=lambda model: ways.append(cd.status(model).activations))
    spilled = train_spilled(task, stage)
    assert ways[1:] == ways[1:2] * (task.steps - 1), "it is decided after the first step"
    return spilled


@pytest.mark.parametrize("way", ["auto", "offload", "recompute"])
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_every_way_stage_and_precision(way: str, stage: int, world: int, precision: str | None, tmp_path: Path) -> None:
    task = replace(TASK, options={"mixed_precision": precision})
    memory = below(tmp_path, {"auto": "3MB", "offload": "3MB", "recompute": "4MB"}[way], way)
    for spilled in assert_equal_under(memory, task, stage, world):
        assert spilled.peak <= 4_000_000


def count_activations(task: Task, stage: int) -> tuple[Spilled, Counter[str]]:
    """Also the bytes of activations that each tier has taken in and given back."""
    moved: list[Counter[str]] = []

    def counted(move: Callable[..., None], key: str) -> Callable[..., None]:
        def run(tier: Tier, slot: int, content: Tensor, name: str) -> None:
            move(tier, slot, content, name)
            if name.startswith("activations of unit"):
                moved.append(Counter({f"{tier.name} {key}": content.numel()}))

        return run

    with pytest.MonkeyPatch.context() as patch:
        for kind in (RamTier, FileTier):
            for key in ("write", "read"):
                patch.setattr(kind, key, counted(getattr(kind, key), key))
        spilled = train_and_count(task, stage)
    return spilled, sum(moved, Counter())


@pytest.mark.parametrize("tiers", [{"host"}, {"host", "nvme"}], ids=["host", "host and nvme"])
@pytest.mark.parametrize("way", ["auto", "offload"])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_activations_on_every_tier(
    tiers: set[str], way: str, world: int, precision: str | None, tmp_path: Path
) -> None:
    """Of blocks that can't run again; 2 MB a rank have room for state and some of what is saved."""
    both = "nvme" in tiers
    nvme = f"{tmp_path}:{world * 32}MB" if both else None
    memory = cd.Memory("3MB", f"{world * (2 if both else 32)}MB", nvme, way)
    task = replace(TASK, make=partial(Deep, Halving), options={"mixed_precision": precision})
    saved = ALL if precision is None else ALL // 2
    free = launch(train_sharded, task, 3, world=world)
    found = launch(count_activations, replace(task, options={**task.options, "memory": memory}), 3, world=world)
    assert_same_bits([spilled.training for spilled, _ in found], free)
    for spilled, moved in found:
        assert spilled.activations["offload"] > 0
        assert (spilled.activations["keep"] == 0) == (way == "offload")
        assert moved.keys() == {f"{tier} {move}" for tier in tiers for move in ("write", "read")}
        assert sum(moved[f"{tier} write"] for tier in tiers) > saved * (task.steps if way == "offload" else 1)
        assert all(usage.peak <= (usage.budget or 0) for usage in spilled.tiers.values())


def test_what_is_kept_is_as_ever(tmp_path: Path) -> None:
    assert_equal_under(below(tmp_path, "9MB", "keep"))


@pytest.mark.parametrize("kind", [Recomputing, RecomputingTogether])
@pytest.mark.parametrize("way", ["auto", "offload", "recompute"])
def test_a_model_that_recomputes_by_itself(kind: type[Stack], way: str, tmp_path: Path) -> None:
    assert_equal_under(below(tmp_path, "5MB", way), replace(TASK, make=partial(Deep, Dropping, kind)))


@pytest.mark.parametrize("sums", [(2,), (1, 2)])
@pytest.mark.parametrize("way", ["auto", "offload", "recompute"])
@pytest.mark.parametrize("early", [False, True])
def test_accumulation(sums: tuple[int, ...], way: str, early: bool, tmp_path: Path) -> None:
    optimizer = partial(OUR_ADAMW, in_backward=early and len(sums) == 1)
    assert_equal_under(below(tmp_path, "4MB", way), replace(TASK, sums=sums, paged=optimizer))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, keep_graph: bool = False) -> float:
    loss = loss_of(model, Sample(0, 0, 0))
    loss.backward(retain_graph=keep_graph)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def trained(memory: cd.Memory, steps: int = 2, make: Callable[[], nn.Module] = Deep) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = cd.shard(make(), memory=memory)
    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def refusal(memory: cd.Memory) -> str:
    with pytest.raises(BudgetError) as caught:
        trained(memory)
    return str(caught.value)


def test_a_budget_without_room_for_activations_was_refused_and_is_enough(tmp_path: Path) -> None:
    [message] = launch(refusal, below(tmp_path, activations="keep"), world=1)
    assert "activations" in message
    [spilled] = assert_equal_under(below(tmp_path))
    assert spilled.peak <= 3_000_000 < ALL


def test_lower_tiers_without_room_are_named(tmp_path: Path) -> None:
    [message] = launch(refusal, cd.Memory(device="3MB", nvme=f"{tmp_path}:4MB"), world=1)
    assert re.search(r"activations.* memory\.nvme \d\.\d\d MiB more for each rank", message)


def refused_step(memory: cd.Memory) -> tuple[int, str]:
    model, optimizer = trained(memory, steps=0)
    for number in range(3):
        try:
            step(model, optimizer)
        except BudgetError as error:
            return number, str(error)
    return 3, ""


@pytest.mark.parametrize(
    ("device", "nvme", "way"), [("5MB", "4MB", "auto"), ("2500KB", "64MB", "recompute")], ids=["below", "recomputed"]
)
def test_what_the_second_step_has_no_room_for_is_refused_in_the_first(
    device: str, nvme: str, way: str, tmp_path: Path
) -> None:
    memory = cd.Memory(device=device, nvme=f"{tmp_path}:{nvme}", activations=way)
    [(number, message)] = launch(refused_step, memory, world=1)
    assert number == 0
    assert message.startswith("memory.device")


def test_activations_leave_room_below_for_the_state_that_a_backward_makes(tmp_path: Path) -> None:
    task = replace(TASK, paged=partial(OUR_ADAMW, in_backward=True))
    assert_equal_under(cd.Memory(device="8MB", nvme=f"{tmp_path}:2MB"), task)


class Hooked(Block):
    """Remembers whether what it saves goes through hooks."""

    hooks: Any = None

    def forward(self, x: Tensor) -> Tensor:
        Hooked.hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return super().forward(x)


def ways_and_hooks(memory: cd.Memory, make: Callable[[], Stack]) -> tuple[dict[str, int], bool]:
    model, optimizer = trained(memory, make=make)
    step(model, optimizer)
    return cd.status(model).activations, Hooked.hooks is not None


@pytest.mark.parametrize(("device", "hooked"), [("20MB", False), ("3MB", True)])
def test_units_that_keep_theirs_pay_nothing(device: str, hooked: bool, tmp_path: Path) -> None:
    [found] = launch(ways_and_hooks, below(tmp_path, device), partial(Deep, Hooked), world=1)
    assert found[1] == hooked
    assert (found[0] == {"keep": BLOCKS + 1, "offload": 0, "recompute": 0}) != hooked


def stored_by_a_forward(memory: cd.Memory, make: Callable[[], Stack]) -> tuple[int, int, int]:
    """Bytes of the tier that a forward takes, that are left of it when the graph is gone, and after evaluation."""
    model, _ = trained(memory, 3, make)
    spill = sharded_of(model).spill
    assert spill is not None

    def used() -> int:
        gc.collect()
        sharded_of(model).activations.settle()  # type: ignore[union-attr]
        return cd.status(model).tiers["nvme"].used

    before = used()
    loss = loss_of(model, Sample(0, 0, 0))
    during = used()
    del loss
    after = used()
    with torch.no_grad():
        loss_of(model, Sample(0, 0, 0))
    return during - before, after - before, used() - before


def left_as_an_update_begins(memory: cd.Memory) -> int:
    """Bytes of the tier that are still graphs' which are freed."""
    model, _ = trained(memory, 3)
    loss_of(model, Sample(0, 0, 0)).backward()
    sharded_of(model).update_begins()
    used = cd.status(model).tiers["nvme"].used
    sharded_of(model).activations.settle()  # type: ignore[union-attr]
    return used - cd.status(model).tiers["nvme"].used


def test_an_update_has_the_room_of_graphs_that_are_freed(tmp_path: Path) -> None:
    assert launch(left_as_an_update_begins, below(tmp_path, "4MB", "offload"), world=1) == [0]


def ways_after_dropped_losses(memory: cd.Memory, losses: int) -> dict[str, int]:
    model, optimizer = trained(memory, steps=0)
    for _ in range(losses):
        loss_of(model, Sample(0, 0, 0))
    step(model, optimizer)
    return cd.status(model).activations


def test_a_loss_that_is_dropped_changes_nothing(tmp_path: Path) -> None:
    memory = below(tmp_path, "4MB", "recompute")
    [expected] = launch(ways_after_dropped_losses, memory, 0, world=1)
    assert expected["recompute"] > 0
    assert launch(ways_after_dropped_losses, memory, 2, world=1) == [expected]


def pages(*floats: int) -> int:
    return sum(-(-4 * ROWS * each // PAGE) * PAGE for each in floats)


ROOT = pages(8, WIDTH, 5)
"""The root's: what goes into the first and the last of its linears, and what comes from the activation."""


@pytest.mark.parametrize(
    ("way", "kind", "block", "root"),
    [
        ("offload", Stack, pages(WIDTH, WIDTH, INNER, INNER), ROOT),
        ("offload", Recomputing, pages(WIDTH), ROOT),
        ("recompute", Stack, pages(WIDTH), 0),  # there is room for the root's
    ],
)
def test_what_is_stored_is_what_arithmetic_says_and_nothing_leaks(
    way: str, kind: type[Stack], block: int, root: int, tmp_path: Path
) -> None:
    memory, make = below(tmp_path, "4MB", way), partial(Deep, Block, kind)
    assert launch(stored_by_a_forward, memory, make, world=1) == [(BLOCKS * block + root, 0, 0)]


class Normed(Stack):
    """Batch norms, which count the batches."""

    def __init__(self) -> None:
        super().__init__(WIDTH, INNER)
        for block in self.blocks:
            block.norm = nn.BatchNorm1d(WIDTH)


class Counting(Block):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + self.calls % 3)


class Remembering(Block):
    def forward(self, x: Tensor, memory: Any = None) -> Tensor:
        y = super().forward(x)
        memory.append(y)
        total: Tensor = sum(memory, y)
        return total


class List:
    """Not a pytree."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def append(self, value: Tensor) -> None:
        self.values.append(value)

    def __iter__(self) -> Any:
        return iter(self.values)


class WithMemory(Stack):
    """Blocks that are given what they can write to, as a cache of keys and values."""

    def __init__(self) -> None:
        super().__init__(WIDTH, INNER, Remembering)

    def run(self, x: Tensor) -> Tensor:
        memory = List()
        for block in self.blocks:
            x = block(x, memory)
        return x


class Halving(Block):
    """Writes to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class Twice(Stack):
    """Blocks that are used twice in a forward."""

    def __init__(self) -> None:
        super().__init__(WIDTH, INNER)

    def run(self, x: Tensor) -> Tensor:
        return super().run(super().run(x))


@pytest.mark.parametrize(
    "make", [Normed, partial(Stack, WIDTH, INNER, Counting), partial(Stack, WIDTH, INNER, Halving), WithMemory, Twice]
)
def test_what_cannot_run_again_is_not_recomputed(make: Callable[[], Stack], tmp_path: Path) -> None:
    memory = below(tmp_path, "5MB", "recompute")
    [(ways, _)] = launch(ways_and_hooks, memory, make, world=1)
    assert ways["recompute"] == 0
    assert ways["offload"] > 0
    assert_equal_under(memory, replace(TASK, make=make))


class Raising(Stack):
    """A block that raises when it is told to."""

    fails = False

    def __init__(self) -> None:
        super().__init__(WIDTH, INNER)

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x if not self.fails or block is not self.blocks[1] else x[0, 0])
        return x


def losses_around_a_forward_that_raises(memory: cd.Memory | None, way: str) -> list[float]:
    torch.manual_seed(0)
    model = cd.shard(Raising(), memory=memory)
    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for number in range(5):
        if memory is not None:
            model.fails = True  # type: ignore[assignment]
            with pytest.raises(RuntimeError):
                model(torch.ones(ROWS, 8))
            hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
            assert hooks is None, number
            model.fails = False  # type: ignore[assignment]
        losses.append(step(model, optimizer))
    return losses


@pytest.mark.parametrize("way", ["offload", "recompute"])
def test_a_forward_that_raises_leaves_nothing_behind(way: str, tmp_path: Path) -> None:
    memory = below(tmp_path, "4MB", way)
    free = launch(losses_around_a_forward_that_raises, None, way, world=1)
    assert launch(losses_around_a_forward_that_raises, memory, way, world=1) == free


def train_on_after_harm(memory: cd.Memory, folder: str) -> tuple[str, str]:
    model, optimizer = trained(memory, steps=3)
    loss = loss_of(model, Sample(0, 0, 0))
    sharded_of(model).activations.settle()  # type: ignore[union-attr]
    flip_every_page(folder)
    with pytest.raises(PageError) as unreadable:
        loss.backward()
    with pytest.raises(RuntimeError) as refused:
        optimizer.step()
    return str(unreadable.value), str(refused.value)


@pytest.mark.parametrize("way", ["offload", "recompute"])
def test_an_activation_that_cannot_be_read_ends_the_backward(way: str, tmp_path: Path) -> None:
    memory = below(tmp_path, "4MB", way)
    [(unreadable, refused)] = launch(train_on_after_harm, memory, str(tmp_path), world=1)
    assert "page" in unreadable
    assert str(tmp_path) in unreadable
    assert "raised" in refused
