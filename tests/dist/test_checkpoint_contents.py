"""What a checkpoint brings back, beyond the parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.comm.groups import rank
from tests.dist.launch import launch
from tests.dist.models import Buffered, Stack


class Counting(nn.Module):
    """Counts its forwards in a tensor that grows, as extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.seen = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, torch.ones(1)])
        y: Tensor = self.linear(x)
        return y

    def get_extra_state(self) -> Tensor:
        return self.seen

    def set_extra_state(self, state: Tensor) -> None:
        self.seen = state


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 8)).abs().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def extras(path: Path) -> Any:
    model = cd.shard(nn.Linear(64, 64))
    numbers: dict[str, Any] = {str(i): (i, rank()) for i in range(4)}
    cd.save(path, model=model, tensor=torch.full((3,), float(rank())), **numbers)
    return cd.load(path, model=model)


def test_extras_are_rank_zeros_also_where_they_are_tensors(tmp_path: Path) -> None:
    for extra in launch(extras, tmp_path / "checkpoint"):
        assert torch.equal(extra.pop("tensor"), torch.zeros(3))
        assert extra == {str(i): (i, 0) for i in range(4)}


def buffers(path: Path) -> list[Tensor]:
    model = cd.shard(Buffered())
    persistent = [b for name, b in model.named_buffers() if name in model.state_dict()]
    for buffer in persistent:
        buffer.fill_(5 + rank())
    cd.save(path, model=model)
    for buffer in persistent:
        buffer.fill_(0)
    cd.load(path, model=model)
    return persistent


def test_buffers_are_rank_zeros(tmp_path: Path) -> None:
    for found in launch(buffers, tmp_path / "checkpoint"):
        assert found
        assert all((buffer == 5).all() for buffer in found)


def extra_state(path: Path) -> int:
    model = cd.shard(nn.Sequential(Counting(), Counting()))
    for _ in range(3):
        model(torch.ones(2, 8))
    cd.save(path, model=model)
    counting = Counting(), Counting()
    cd.load(path, model=cd.shard(nn.Sequential(*counting)))
    return sum(len(module.seen) for module in counting)


def test_extra_state_of_modules_comes_back(tmp_path: Path) -> None:
    assert launch(extra_state, tmp_path / "checkpoint") == [6, 6]


def save_before_the_first_step(path: Path) -> tuple[int, bool]:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    cd.save(path, model=model, optimizer=optimizer)
    states = len(optimizer.inner.state)
    step(model, optimizer)
    cd.load(path, model=model, optimizer=optimizer)
    return states, any(state for _, _, state in optimizer.piece_states())


def test_a_checkpoint_before_the_first_step_has_no_state_and_makes_none(tmp_path: Path) -> None:
    assert launch(save_before_the_first_step, tmp_path / "checkpoint") == [(0, False)] * 2


def dtypes_of_steps(path: Path) -> set[torch.dtype]:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters())
    step(model, optimizer)
    for _, _, state in optimizer.piece_states():
        state["step"] = state["step"].double()
    cd.save(path, model=model, optimizer=optimizer)
    cd.load(path, model=model, optimizer=optimizer)
    step(model, optimizer)
    return {state["step"].dtype for _, _, state in optimizer.piece_states()}


def test_the_fused_kernels_step_is_loaded_as_it_wants_it(tmp_path: Path) -> None:
    assert launch(dtypes_of_steps, tmp_path / "checkpoint") == [{torch.float32}] * 2


def resume(path: Path) -> bool:
    torch.manual_seed(0)
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters(), lr=0.01)
    step(model, optimizer)
    cd.save(path, model=model, optimizer=optimizer)
    step(model, optimizer)
    straight = [p.detach().clone() for p in model.parameters()]
    other = cd.shard(Stack())
    fresh = cd.AdamW(other.parameters(), lr=1.0)
    cd.load(path, model=other, optimizer=fresh)
    step(other, fresh)
    return all(torch.equal(a, b) for a, b in zip(straight, other.parameters(), strict=True))


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    assert launch(resume, tmp_path / "checkpoint") == [True, True]
