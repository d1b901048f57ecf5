"""A run that is killed before any change to the disk goes on from a whole checkpoint, and its losses are the same.

So do runs whose checkpoints are written beside training or compressed, and two ranks of which either is killed.
"""

from __future__ import annotations

import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from ciuic_dist.comm.together import on_rank_zero
from tests.dist.killing import KILLED, Changes, code_of, in_a_copy, unsynced
from tests.dist.launch import launch
from tests.dist.test_checkpoint_kills import run_folder
from tests.dist.test_checkpoint_worlds import train
from tests.dist.train_jobs import free_port

STEPS = 4
Losses = dict[int, float]


def go_on(folder: Path, options: dict[str, Any]) -> Losses:
    """What ``train`` does: from the newest checkpoint to the last step, a checkpoint after each; losses by step.

    ``durable`` is the last step that it was told is.
    """
    run, durable = run_folder(folder), folder / "durable"
    first = on_rank_zero(lambda: run.claim()[0])
    torch.manual_seed(0)
    model = cd.shard(nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)))
    optimizer = cd.AdamW(model.parameters(), lr=1e-2)
    if first:
        assert cd.load(run.checkpoint(first), model=model, optimizer=optimizer) == {"step": first}
    losses = {}
    for step in range(first + 1, STEPS + 1):
        losses[step] = train(model, optimizer, range(step, step + 1))[0]
        saving = cd.save(run.checkpoint(step), model=model, optimizer=optimizer, step=step, **options)
        if step == STEPS:
            saving.wait()
        on_rank_zero(lambda: durable.write_text(str(run.newest())))
        on_rank_zero(run.prune)
    on_rank_zero(run.release)
    return losses


def durable_in(folder: Path) -> int:
    file = folder / "durable"
    return int(file.read_text() or 0) if file.exists() else 0


def check(folder: Path, losses: Losses, expected: Losses) -> None:
    """``losses`` are of a run that went on in ``folder``."""
    # A run killed after its last checkpoint, before it was told so, leaves nothing to go on with.
    assert durable_in(folder) == STEPS or not losses
    assert losses == {step: expected[step] for step in losses}
    run = run_folder(folder)
    assert run.newest() == STEPS
    checkpoints = run.checkpoint(0).parent
    names = [f"step-{step:06d}" for step in range(1, STEPS + 1)]
    there = sorted(entry.name for entry in checkpoints.iterdir())
    # Where nothing was left to train, nothing was pruned.
    assert there == names[-2:] if losses else {*names[-2:]} <= {*there} <= {*names}


def counted(folder: Path, options: dict[str, Any]) -> tuple[Losses, int]:
    """The losses of a run that nothing disturbs, and the changes that this rank makes to the disk."""
    with Changes() as changes:
        losses = go_on(folder, options)
    return losses, changes.made


def dying(folder: Path, options: dict[str, Any], last: int, torn: float) -> None:
    sys.setswitchinterval(random.Random(last).choice((1e-6, 5e-3)))  # seconds: threads take turns in more ways
    with Changes(last, torn):
        go_on(folder, options)


def kill_runs(folder: Path, options: dict[str, Any], kills: int) -> None:
    """At ``kills`` places, or wherever there is one."""
    expected, places = counted(folder / "whole", options)
    check(folder / "whole", expected, expected)
    draw = random.Random(0)
    with unsynced():
        for place in draw.sample(range(1, places + 1), min(kills, places)):
            here = folder / str(place)
            assert code_of(in_a_copy(partial(dying, here, options, place, draw.random()))) == KILLED
            durable = durable_in(here)
            losses = go_on(here, options)
            assert durable + len(losses) <= STEPS
            check(here, losses, expected)


WAYS: dict[str, dict[str, Any]] = {
    "beside": {"wait": False},
    "compressed": {"compress": True},
    "compressed beside": {"wait": False, "compress": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on_from_a_whole_checkpoint(way: str, tmp_path: Path) -> None:
    launch(kill_runs, tmp_path, WAYS[way], 30, world=1)


def dying_rank(own: int, victim: int, port: int, folder: Path, options: dict[str, Any], last: int, torn: float) -> None:
    described = {"WORLD_SIZE": 2, "RANK": own, "LOCAL_RANK": own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in described.items()})
    cd.init(timeout=30)
    if own == victim:
        dying(folder, options, last, torn)
    else:
        with unsynced():
            go_on(folder, options)


def kill_ranks(folder: Path, options: dict[str, Any], places: list[int], kills: int) -> list[Path]:
    """Each rank at ``kills`` places; the other one is killed when it is dead. The folders they leave."""
    draw, left = random.Random(0), []
    for victim in (0, 1):
        for place in draw.sample(range(1, places[victim] + 1), kills):
            here, torn, port = folder / f"{victim}-{place}", draw.random(), free_port()
            ranks = [in_a_copy(partial(dying_rank, own, victim, port, here, options, place, torn)) for own in (0, 1)]
            assert code_of(ranks[victim]) == KILLED
            os.kill(ranks[1 - victim], KILLED)
            code_of(ranks[1 - victim])
            left.append(here)
    return left


def go_on_in(folders: list[Path], options: dict[str, Any]) -> list[tuple[int, Losses]]:
    """What was known to be durable, and the losses."""
    found = []
    with unsynced():
        for folder in folders:
            durable = on_rank_zero(partial(durable_in, folder))
            found.append((durable, go_on(folder, options)))
    return found


@pytest.mark.parametrize("way", ["at once", "beside"])
def test_two_ranks_go_on_from_a_whole_checkpoint_whichever_was_killed(way: str, tmp_path: Path) -> None:
    options = WAYS.get(way, {})
    whole = launch(counted, tmp_path / "whole", options)
    folders = launch(kill_ranks, tmp_path, options, [places for _, places in whole], 8, world=1)[0]
    assert len(folders) == 16
    for (expected, _), found in zip(whole, launch(go_on_in, folders, options), strict=True):
        for folder, (durable, losses) in zip(folders, found, strict=True):
            assert durable + len(losses) <= STEPS
            check(folder, losses, expected)
