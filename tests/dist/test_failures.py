"""What a rank is told when another one dies, stops answering, or was started differently."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from tests.dist.launch import Outcome, fresh
from tests.dist.models import Stack

ways = pytest.mark.parametrize("shared", [True, False], ids=["shared", "collectives"])


def fail_in_the_second_forward(failing: int, how: str) -> None:
    torch.manual_seed(0)
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    for step in range(3):
        if step == 1 and rank() == failing:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # until the launcher ends it
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def errors(outcomes: list[Outcome], of: int) -> str:
    error = outcomes[of].error
    assert error is not None
    return error


@ways
def test_a_killed_rank_ends_the_others(shared: bool) -> None:
    error = errors(fresh(2, shared=shared).run(fail_in_the_second_forward, 1, "killed"), of=0)
    assert "PeerLost" in error
    assert ("rank 1 ended" in error) if shared else ("lost its peers in the gather of" in error)


@ways
def test_a_rank_that_does_not_answer_is_waited_for_no_longer_than_the_timeout(shared: bool) -> None:
    error = errors(fresh(2, shared=shared, timeout=3.0).run(fail_in_the_second_forward, 1, "stopped"), of=0)
    assert "PeerLost" in error
    assert ("waited 3 s" in error and "rank 1 has not come" in error) if shared else ("timeout 3 s" in error)


def shard_differently(what: str) -> None:
    model: nn.Module = Stack(width=12 + rank()) if what == "shape" else Stack()
    if what == "name" and rank() == 1:
        model.another = model.last
        del model.last
    cd.shard(
        model,
        stage=2 + (what == "stage" and rank()),
        mixed_precision="bf16" if what == "precision" and rank() else None,
    )


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("shape", "parameters.blocks.0.down.bias"),
        ("name", "another"),
        ("stage", "stage"),
        ("precision", "mixed_precision"),
    ],
)
def test_ranks_that_differ_are_told_how(what: str, named: str) -> None:
    for outcome in fresh(2).run(shard_differently, what):
        assert outcome.error is not None
        assert "Disagreement: ranks 0 and 1 have a different sharded model" in outcome.error
        assert named in outcome.error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "5"}, "RANK=5 is outside the world: WORLD_SIZE=2 needs ranks 0 to 1"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not: start the ranks with torchrun"),
    ],
)
def test_a_wrong_world_is_refused(
    changed: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (described | changed).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        cd.init()
