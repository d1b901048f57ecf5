"""Groups of ranks that each have a replica: four ranks, two by two, sharding within and adding up across."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import ciuic_dist as cd
from ciuic_dist.comm.errors import Disagreement
from ciuic_dist.comm.groups import rank
from ciuic_dist.sharding.registry import sharded_of
from ciuic_dist.sharding.values import read_shard
from tests.dist.launch import fresh, launch
from tests.dist.models import Choosy, Stack
from tests.dist.spilling import assert_spilling_changes_nothing, below
from tests.dist.test_engine_models import leaving_out
from tests.dist.test_spill_hosts import TALL
from tests.dist.test_traffic import STEPS, UNITS, traffic
from tests.dist.training import OUR_ADAMW, Sample, Task, assert_equal, made, mean_square, train_plain, train_sharded

PAIRS = {"group": 2}
sharding_stages = pytest.mark.parametrize("stage", [1, 2, 3])
both_ways = pytest.mark.parametrize("shared", [True, False], ids=["one host", "hosts"])

TASKS = {
    "plain": Task(options=PAIRS),
    "clipped": Task(max_norm=0.05, options=PAIRS),
    "accumulated": Task(sums=(3,), max_norm=0.05, options=PAIRS),
    "added up twice": Task(sums=(2, 1), max_norm=0.05, options=PAIRS),
    "accumulated after that": Task(sums=(1, 2), options=PAIRS),
    "in the backward": Task(paged=partial(OUR_ADAMW, in_backward=True), options=PAIRS),
    "unused on some ranks": Task(make=Choosy, loss=leaving_out, steps=4, options=PAIRS),
}


@both_ways
@sharding_stages
@pytest.mark.parametrize("name", TASKS)
def test_a_training_is_that_of_one_process(name: str, stage: int, shared: bool) -> None:
    found = launch(train_sharded, TASKS[name], stage, world=4, shared=shared)
    assert_equal(found, train_plain(TASKS[name], 4, at_once=stage >= 2), tolerance=1e-6)


@pytest.mark.parametrize("stage", [1, 3])
def test_three_replicas(stage: int) -> None:
    found = launch(train_sharded, TASKS["accumulated"], stage, world=6)
    assert_equal(found, train_plain(TASKS["accumulated"], 6, at_once=stage >= 2), tolerance=1e-6)


SPILLED = {
    "plain": Task(TALL, steps=3, options=PAIRS),
    "bf16, in the backward": Task(
        TALL, steps=3, paged=partial(OUR_ADAMW, in_backward=True), options={**PAIRS, "mixed_precision": "bf16"}
    ),
    "accumulated": Task(TALL, steps=3, sums=(1, 2), max_norm=0.05, options=PAIRS),
}


@both_ways
@sharding_stages
@pytest.mark.parametrize("name", SPILLED)
def test_spilling_changes_nothing(name: str, stage: int, shared: bool, tmp_path: Path) -> None:
    memory = below("nvme", tmp_path, "1500KB" if name == "accumulated" else "900KB")
    assert_spilling_changes_nothing(SPILLED[name], memory, stage, world=4, shared=shared)


def blocks_of_one_group(model: nn.Module, sample: Sample) -> Tensor:
    """Each group uses other blocks; after the first micro-batch the second uses none, and nobody what it used."""
    group = sample.rank // 2
    use = (group == 0, group == 1, True) if sample.micro == 0 else (group == 0, False, group == 0)
    loss: Tensor = model(sample.inputs(4, 8), use).square().mean()
    return loss


@both_ways
@pytest.mark.parametrize("sums", [(1,), (3,), (1, 2), (2, 1)])
def test_what_only_one_group_uses_counts_once(sums: tuple[int, ...], shared: bool) -> None:
    # AdamW makes steps of rounding where a gradient is next to nothing.
    plain, paged = (partial(how, lr=0.3, momentum=0.9) for how in (SGD, partial(cd.paged, SGD)))
    task = Task(Choosy, blocks_of_one_group, plain=plain, paged=paged, sums=sums, options=PAIRS)
    for stage in (1, 3):
        found = launch(train_sharded, task, stage, world=4, shared=shared)
        assert_equal(found, train_plain(task, 4, at_once=stage >= 2), tolerance=1e-6)


def own_shards(stage: int) -> list[Tensor]:
    """After two steps."""
    model = cd.shard(made(Task()), stage=stage, group=2)
    _train(model, cd.AdamW(model.parameters()), range(2))
    return [read_shard(flat) for flat in sharded_of(model).flats]


@both_ways
@sharding_stages
def test_replicas_are_alike_to_the_last_bit(stage: int, shared: bool) -> None:
    found = launch(own_shards, stage, world=4, shared=shared)
    torch.testing.assert_close(found[:2], found[2:], rtol=0.0, atol=0.0)
    assert not torch.equal(found[0][0], found[1][0])


def traffic_in_pairs(stage: int) -> tuple[list[tuple[int, int, int, int]], int, int]:
    return traffic(stage, group=2)


def test_gathers_stay_within_a_group_and_a_shard_of_the_gradients_leaves_it() -> None:
    for added, full, blocks in launch(traffic_in_pairs, 3, world=4, shared=False):
        assert added == [(2 * UNITS - 1, (full + blocks) // 2, UNITS, full // 2 + full // 2)] * STEPS
    for added, full, _ in launch(traffic_in_pairs, 3, world=4):
        flags = 4 * len(list(Stack().parameters()))
        assert added == [(0, 0, UNITS, full + full // 2 + flags)] * STEPS


def accumulating(stage: int) -> int:
    """Bytes that come for gradients in a step of three micro-batches."""
    model = cd.shard(Stack(), stage=stage, group=2)
    for micro in range(3):
        with nullcontext() if micro == 2 else cd.no_sync(model):
            mean_square(model, Sample(rank(), 0, micro)).backward()
    return cd.status(model).reduced_bytes


def test_shards_leave_a_group_once_a_step() -> None:
    [(_, full, _), *_] = launch(traffic_in_pairs, 3, world=4, shared=False)
    assert launch(accumulating, 3, world=4, shared=False) == [3 * full // 2 + full // 2] * 4
    assert launch(accumulating, 1, world=4, shared=False) == [full // 2 + full // 2] * 4
    flags = 4 * len(list(Stack().parameters()))
    assert launch(accumulating, 3, world=4) == [3 * full + full // 2 + flags] * 4


def too_early() -> list[str]:
    """The errors of an update, and of clipping."""
    model = cd.shard(Stack(), stage=2, group=2)
    optimizer = cd.AdamW(model.parameters())
    with cd.no_sync(model):
        mean_square(model, Sample(rank(), 0, 0)).backward()
    errors = []
    for use in (optimizer.step, partial(cd.clip_grad_norm_, model, 1.0)):
        with pytest.raises(RuntimeError) as refused:
            use()
        errors.append(str(refused.value))
    return errors


@both_ways
def test_what_a_group_has_alone_is_no_gradient(shared: bool) -> None:
    for texts in launch(too_early, world=4, shared=shared):
        assert all("run the last backward of a step outside no_sync" in text for text in texts)


def shards(group: int | None) -> list[int]:
    """Elements of this rank's shards."""
    model = cd.shard(Stack(), group=group)
    return [flat.layout.shard_numel for flat in sharded_of(model).flats]


def test_a_rank_keeps_its_part_of_a_group() -> None:
    in_pairs, alone = launch(shards, 2, world=4), launch(shards, None, world=2)
    assert in_pairs == [*alone, *alone]


def save(path: Path, group: int | None) -> dict[str, Tensor]:
    model = cd.shard(made(Task()), group=group)
    optimizer = cd.AdamW(model.parameters())
    _train(model, optimizer, range(2))
    cd.save(path, model=model, optimizer=optimizer)
    _train(model, optimizer, range(2, 4))
    return cd.full_state_dict(model)


def go_on(path: Path, group: int | None) -> dict[str, Tensor]:
    model = cd.shard(made(Task(), seed=99), group=group)
    optimizer = cd.AdamW(model.parameters())
    cd.load(path, model=model, optimizer=optimizer)
    _train(model, optimizer, range(2, 4))
    return cd.full_state_dict(model)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        mean_square(model, Sample(rank(), step, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_checkpoint_has_one_replica_and_goes_on_with_other_groups(tmp_path: Path) -> None:
    expected = launch(save, tmp_path / "pairs", 2, world=4)[0]
    launch(save, tmp_path / "all", None, world=4)
    assert _pages(tmp_path / "pairs") == pytest.approx(_pages(tmp_path / "all"), rel=0.05)
    assert min(file.stat().st_size for file in (tmp_path / "pairs").glob("*.pages")) > 0  # each rank writes a part
    assert_same(launch(go_on, tmp_path / "pairs", 2, world=4)[0], expected, tolerance=0.0)
    assert_same(launch(go_on, tmp_path / "pairs", None, world=4)[0], expected, tolerance=1e-6)
    assert_same(launch(go_on, tmp_path / "all", 2, world=4, shared=False)[0], expected, tolerance=1e-6)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def _pages(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.pages"))


def refusal(stage: int, group: int) -> str:
    try:
        cd.shard(Stack(), stage=stage, group=group)
    except ValueError as error:
        return str(error)
    return "none"


@pytest.mark.parametrize(
    ("stage", "group", "words"), [(3, 3, "divide the 4 ranks"), (3, 1, "shards nothing"), (0, 2, "shards nothing")]
)
def test_groups_that_can_not_be_are_refused(stage: int, group: int, words: str) -> None:
    for text in launch(refusal, stage, group, world=4):
        assert words in text
        assert str(group) in text


def disagree() -> str:
    try:
        cd.shard(Stack(), group=2 + 2 * (rank() == 3))
    except Disagreement as error:
        return str(error)
    return "none"


def test_ranks_that_ask_for_different_groups_are_told() -> None:
    assert all("group" in text for text in launch(disagree, world=4))


def lose_a_rank() -> None:
    model = cd.shard(Stack(), group=2)
    for step in range(3):
        if step == 1 and rank() == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        mean_square(model, Sample(rank(), step, 0)).backward()


@both_ways
def test_a_rank_that_is_lost_ends_those_of_other_groups(shared: bool) -> None:
    outcomes = fresh(4, shared=shared, timeout=4.0).run(lose_a_rank)  # less than a launch gives the others
    assert all("PeerLost" in (outcome.error or "") for outcome in outcomes[:3])
    assert not shared or "rank 3 ended" in (outcomes[2].error or "")
