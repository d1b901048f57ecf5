"""The pool of one host: private, gone with its ranks, for more ranks than cores, left out where it can't be had."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import warnings
from pathlib import Path

import torch

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import fresh, launch
from tests.dist.models import Stack
from tests.dist.training import Task, assert_equal, train_plain, train_sharded


def places() -> set[str]:
    return {str(entry) for folder in ("/dev/shm", tempfile.gettempdir()) for entry in Path(folder).glob("*ciuic*")}


def names_of_a_sharded_model() -> tuple[set[str], list[str]]:
    model = cd.shard(Stack())
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "ciuic-pool" in line]
    model(torch.ones(2, 8)).sum().backward()
    return places(), mapped


def test_the_pool_has_no_name_that_another_process_could_open() -> None:
    before = places()
    for found, mapped in launch(names_of_a_sharded_model):
        assert found <= before
        assert mapped
        assert all("/memfd:ciuic-pool (deleted)" in line for line in mapped)


def die_with_a_sharded_model() -> None:
    model = cd.shard(Stack())
    model(torch.ones(2, 8)).sum().backward()
    os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_stays_behind_after_kill() -> None:
    before = places()
    fresh(2).run(die_with_a_sharded_model)
    assert places() <= before


def test_more_ranks_than_cores() -> None:
    world = 2 * len(os.sched_getaffinity(0)) + 1
    assert_equal(launch(train_sharded, Task(), 3, world=world), train_plain(Task(), world), tolerance=1e-5)


def train_where_files_are_small() -> tuple[str, list[str], list[float]]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    losses = []
    for _ in range(3):
        loss = model(torch.full((2, 8), 1.0 + rank())).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    messages = [str(warning.message) for warning in caught]
    return type(sharded_of(model).exchange).__name__, messages, losses


def test_ranks_send_with_one_warning_where_memory_cannot_be_had() -> None:
    for outcome in fresh(2).run(train_where_files_are_small):
        assert outcome.error is None, outcome.error
        exchange, messages, losses = outcome.value
        assert exchange == "CollectiveExchange"
        assert sum("will send instead of sharing memory" in message for message in messages) == 1
        assert losses[-1] < losses[0]
