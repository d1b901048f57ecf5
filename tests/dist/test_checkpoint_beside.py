"""A checkpoint that is written while training goes on is what it would have been if training had waited."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist
from torch import nn

import ciuic_dist as cd
from ciuic_dist.checkpoint import disk, stream
from ciuic_dist.checkpoint.copies import Rooms
from ciuic_dist.checkpoint.snapshot import Snapshot
from ciuic_dist.comm.groups import rank
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import fresh, launch
from tests.dist.models import Stack
from tests.dist.spilling import Deep
from tests.dist.stored import everything_in
from tests.dist.test_checkpoint_worlds import train

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"mixed_precision": "bf16"},
    "budget": {"memory": "nvme"},
    "bf16 budget": {"memory": "nvme", "mixed_precision": "bf16"},
}


class Late:
    """Has the thread beside wait until told: training comes first then, and has to write what it changes."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self._write_beside = Snapshot.write_beside

    def __enter__(self) -> Self:
        late = self

        def wait_first(snapshot: Snapshot) -> None:
            assert late.go.wait(60)
            late._write_beside(snapshot)

        Snapshot.write_beside = wait_first  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        self.go.set()
        Snapshot.write_beside = self._write_beside  # type: ignore[method-assign]


def made(stage: int, options: dict[str, Any], path: Path) -> nn.Module:
    torch.manual_seed(0)
    memory = cd.Memory(device="1400KB", nvme=f"{path}:50MB") if options.get("memory") else None
    model = Deep()
    model.get_parameter("blocks.1.up.bias").requires_grad_(False)  # in no update
    return cd.shard(model, stage=stage, **{**options, "memory": memory})


def save_twice(path: Path, stage: int, options: dict[str, Any], optim: dict[str, Any]) -> tuple[bool, float]:
    """The same moment as ``at once`` and as ``beside``, two steps long."""
    small = cd.shard(Stack())
    train(small, cd.AdamW(small.parameters(), **optim), range(1))  # makes the tables of 8-bit codes, in no budget
    model = made(stage, options, path)
    optimizer = cd.AdamW(model.parameters(), **optim)
    train(model, optimizer, range(2))
    cd.save(path / "at once", model=model, optimizer=optimizer, step=2)
    with Late() as late:
        saving = cd.save(path / "beside", model=model, optimizer=optimizer, step=2, wait=False)
        early = saving.done
        train(model, optimizer, range(2, 4))
        late.go.set()
        saving.wait()
    return early, saving.stall_seconds


PLACES = [(0, True), (3, True), (2, False), (3, False)]
OPTIMIZERS: list[dict[str, Any]] = [{}, {"in_backward": True}, {"state_dtype": "8bit"}]


@pytest.mark.parametrize(
    ("stage", "shared", "way", "optim"),
    [  # each pair of a place and a way, and all optimizers with each of either
        pytest.param(*place, way, OPTIMIZERS[(row + column) % 3], id=f"{place}-{way}-{(row + column) % 3}")
        for row, place in enumerate(PLACES)
        for column, way in enumerate(WAYS)
    ],
)
def test_training_on_changes_nothing(stage: int, shared: bool, way: str, optim: dict[str, Any], tmp_path: Path) -> None:
    outcomes = launch(save_twice, tmp_path, stage, WAYS[way], optim, shared=shared)
    assert all(not early and stalled > 0 for early, stalled in outcomes)
    expected, found = everything_in(tmp_path / "at once"), everything_in(tmp_path / "beside")
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def beside_alone(path: Path) -> float:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(2))
    cd.save(path / "at once", model=model, optimizer=optimizer)
    saving = cd.save(path / "beside", model=model, optimizer=optimizer, wait=False)
    saving._thread.join(60)  # without a word of training
    done = saving.done
    train(model, optimizer, range(2, 4))
    assert done
    return saving.stall_seconds


def test_what_is_at_hand_needs_no_update(tmp_path: Path) -> None:
    launch(beside_alone, tmp_path)
    torch.testing.assert_close(everything_in(tmp_path / "beside"), everything_in(tmp_path / "at once"), rtol=0, atol=0)


def fill_up(path: Path, late: bool, memory: str | None) -> list[str]:
    """Rank 1's drive is full from the first page of values on, once."""
    model = made(3, {"memory": memory}, path.parent)
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(2))
    cd.save(path, model=model, optimizer=optimizer, step=2)
    write, said = disk.write, []
    vars(stream).update(BUFFER_BYTES=4096)  # so that it is found out in the middle

    def full(descriptor: int, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Late() as waiting:
        saving = cd.save(path, model=model, optimizer=optimizer, step=3, wait=False)
        if rank() == 1:
            disk.write = full
        if late:
            train(model, optimizer, range(2, 4))  # goes on
        waiting.go.set()
        try:
            saving.wait()
        except OSError as error:
            said.append(type(error).__name__)
        disk.write = write
    said.append(str(cd.load(path, model=model, optimizer=optimizer)))
    cd.save(path, model=model, optimizer=optimizer, step=4)
    said.append(str(cd.load(path, model=model, optimizer=optimizer)))
    return said


@pytest.mark.parametrize("memory", [None, "nvme"])
@pytest.mark.parametrize("late", [False, True])
def test_a_full_drive_is_told_to_all_ranks_and_leaves_what_was_there(
    late: bool, memory: str | None, tmp_path: Path
) -> None:
    for said in launch(fill_up, tmp_path / "c", late, memory):
        assert said == ["NoRoom", "{'step': 2}", "{'step': 4}"]


def save_again_and_again(path: Path) -> list[dict[str, Any]]:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    for step in range(4):
        train(model, optimizer, range(step, step + 1))
        cd.save(path / str(step), model=model, optimizer=optimizer, step=step, wait=False)
    return [cd.load(path / str(step), model=model, optimizer=optimizer) for step in range(4)]


def test_one_checkpoint_waits_for_the_one_before_and_loading_for_the_last(tmp_path: Path) -> None:
    for extras in launch(save_again_and_again, tmp_path):
        assert extras == [{"step": step} for step in range(4)]


def close_early(path: Path) -> str:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(1))
    with Late() as late:
        saving = cd.save(path, model=model, optimizer=optimizer, wait=False)
        sharded_of(model).close()
        late.go.set()
        with pytest.raises(RuntimeError) as raised:
            saving.wait()
    return str(raised.value)


def test_closing_a_model_ends_what_is_in_the_making(tmp_path: Path) -> None:
    for said in launch(close_early, tmp_path / "c"):
        assert "was closed before all of it was written" in said
    assert not (tmp_path / "c").exists()


def save_in_the_middle(path: Path) -> str:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters(), in_backward=True)
    model(torch.ones(2, 8)).square().mean().backward()
    with pytest.raises(RuntimeError) as raised:
        cd.save(path, model=model, optimizer=optimizer)
    return str(raised.value)


def test_half_an_update_is_no_checkpoint(tmp_path: Path) -> None:
    for said in launch(save_in_the_middle, tmp_path / "c"):
        assert "call its step() first" in said
    assert not any(tmp_path.iterdir())


def save_small(path: Path, memory: str | None) -> list[int]:
    torch.manual_seed(0)
    model = made(3, {"memory": memory}, path)
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(2))
    cd.save(path / "raw", model=model, optimizer=optimizer)
    cd.save(path / "at once", model=model, optimizer=optimizer, compress=True)
    saving = cd.save(path / "beside", model=model, optimizer=optimizer, compress=True, wait=False)
    train(model, optimizer, range(2, 4))
    saving.wait()
    return [sum(file.stat().st_size for file in (path / name).glob("*.pages")) for name in ("raw", "at once")]


@pytest.mark.parametrize("memory", [None, "nvme"])
def test_compression_loses_nothing(memory: str | None, tmp_path: Path) -> None:
    for raw, small in launch(save_small, tmp_path, memory):
        assert small < 0.95 * raw
    raw = everything_in(tmp_path / "raw")
    for name in ("at once", "beside"):
        torch.testing.assert_close(everything_in(tmp_path / name), raw, rtol=0.0, atol=0.0)


def replace_state(path: Path) -> str:
    model = made(3, {"memory": "nvme"}, path)
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(2))
    cd.save(path / "at once", model=model, optimizer=optimizer)
    before = optimizer.state_dict()
    train(model, optimizer, range(2, 4))
    cd.load(path / "at once", model=model, optimizer=optimizer)
    saving = cd.save(path / "beside", model=model, optimizer=optimizer, wait=False)
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError) as raised:
        thread.submit(saving.wait).result()
    for state in before["state"].values():
        state["exp_avg"].zero_()
    optimizer.load_state_dict(before)
    saving.wait()
    return str(raised.value)


def test_state_that_is_replaced_is_written_before_and_by_the_thread_that_trains(tmp_path: Path) -> None:
    for said in launch(replace_state, tmp_path):
        assert "the thread that trains" in said
    expected = everything_in(tmp_path / "at once")
    torch.testing.assert_close(everything_in(tmp_path / "beside"), expected, rtol=0.0, atol=0.0)


def leave_early(path: Path) -> bool:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(1))
    cd.save(path, model=model, optimizer=optimizer, step=1)
    with Late() as late:
        saving = cd.save(path, model=model, optimizer=optimizer, step=2, wait=False)
        sharded_of(model).close()
        dist.destroy_process_group()
        late.go.set()
        saving._thread.join(60)
    return saving.done


def test_a_group_that_ends_makes_no_checkpoint_of_a_part(tmp_path: Path) -> None:
    outcomes = fresh(2).run(leave_early, tmp_path / "c")
    assert [(outcome.error, outcome.value) for outcome in outcomes] == [(None, True)] * 2
    assert everything_in(tmp_path / "c")["extra"] == {"step": 1}


def interrupt(path: Path) -> list[str]:
    model = made(3, {"memory": "nvme"}, path)
    optimizer = cd.AdamW(model.parameters())
    train(model, optimizer, range(2))
    copy, said = Rooms.copy, []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    saving = cd.save(path / "c", model=model, optimizer=optimizer, wait=False)
    Rooms.copy = interrupted  # type: ignore[method-assign]
    try:
        train(model, optimizer, range(2, 3))
    except KeyboardInterrupt:
        said.append("out")
    Rooms.copy = copy  # type: ignore[method-assign]
    sharded_of(model).close()
    try:
        saving.wait()
    except RuntimeError as error:
        said.append(str(error))
    return said


def test_an_interrupt_in_the_middle_leaves_nobody_waiting(tmp_path: Path) -> None:
    for said in launch(interrupt, tmp_path):
        assert said == ["out", "it was interrupted"]
    assert not (tmp_path / "c").exists()
