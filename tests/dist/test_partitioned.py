"""What a library keeps as one flat tensor of masters goes through checkpoints under the names of ours."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

import ciuic_dist as cd
from ciuic_dist.checkpoint.partitioned import load_partitioned, save_partitioned
from ciuic_dist.comm.groups import gather_objects, rank
from tests.dist.launch import launch
from tests.dist.models import Stack


class FlatPart:
    """A parameter's range of one flat tensor."""

    on_all_ranks = True
    start = 0

    def __init__(self, parameter: nn.Parameter, flat: Tensor, offset: int, optimizer: AdamW) -> None:
        self.shape = parameter.shape
        self.numel = parameter.numel()
        self.owner: Tensor | None = flat
        self._offset = offset
        self._optimizer = optimizer

    def get(self, key: str | None) -> Tensor:
        found = self._range(key).clone()
        gather_objects(None)  # as what is gathered waits for all ranks
        return found

    def set(self, values: Tensor, key: str | None) -> None:
        self._range(key).copy_(values)

    def _range(self, key: str | None) -> Tensor:
        assert self.owner is not None
        kept: Tensor = self.owner if key is None else self._optimizer.state[self.owner][key]
        return kept.detach()[self._offset : self._offset + self.numel]


class Unwritable(FlatPart):
    """On rank 1."""

    def get(self, key: str | None) -> Tensor:
        found = super().get(key)
        return found.to("meta") if rank() == 1 else found


class Flattened:
    """A model, its parameters as one, and where each of them is."""

    def __init__(self, kind: type[FlatPart] = FlatPart) -> None:
        torch.manual_seed(0)
        self.model = Stack()
        self.flat = nn.Parameter(torch.cat([p.detach().view(-1) for p in self.model.parameters()]))
        self.optimizer = AdamW([self.flat], lr=0.01)
        self.parts, offset = {}, 0
        for name, parameter in self.model.named_parameters():
            self.parts[name] = kind(parameter, self.flat, offset, self.optimizer)
            offset += parameter.numel()

    def step(self) -> None:
        self.flat.grad = self.flat.detach().sin()
        self.optimizer.step()

    def save(self, path: Path, *, compress: bool = False) -> None:
        save_partitioned(path, self.model, self.optimizer, self.parts, {"step": 2}, compress=compress)

    def load(self, path: Path) -> dict[str, int]:
        return load_partitioned(path, self.model, self.optimizer, self.parts, nullcontext)


def saved(path: Path, compress: bool = False) -> None:
    one = Flattened()
    one.step()
    one.step()
    one.save(path, compress=compress)


def went_on(path: Path) -> bool:
    """Whether a third step gives the same after a load."""
    one, other = Flattened(), Flattened()
    for _ in range(2):
        one.step()
    assert other.load(path) == {"step": 2}
    one.step()
    other.step()
    return torch.equal(one.flat, other.flat)


def loaded_by_ours(path: Path) -> bool:
    model = cd.shard(Stack())
    optimizer = cd.AdamW(model.parameters(), lr=0.01)
    cd.load(path, model=model, optimizer=optimizer)
    one = Flattened()
    for _ in range(2):
        one.step()
    values = cd.full_state_dict(model)
    return rank() != 0 or torch.equal(torch.cat([values[name].view(-1) for name in one.parts]), one.flat.detach())


def test_it_goes_on_on_any_number_of_ranks_with_either(tmp_path: Path) -> None:
    launch(saved, tmp_path / "two", world=2)
    assert sorted(file.name for file in (tmp_path / "two").glob("*.pages")) == ["rank-00000.pages", "rank-00001.pages"]
    launch(saved, tmp_path / "one", world=1)
    launch(saved, tmp_path / "small", True, world=1)
    assert '"planes"' in (tmp_path / "small" / "rank-00000.index").read_text()
    assert '"planes"' not in (tmp_path / "one" / "rank-00000.index").read_text()
    for path, world in ((tmp_path / "two", 1), (tmp_path / "one", 2), (tmp_path / "two", 3), (tmp_path / "small", 2)):
        assert all(launch(went_on, path, world=world))
    assert all(launch(loaded_by_ours, tmp_path / "two", world=3))


def save_unwritable(path: Path) -> str:
    one = Flattened(Unwritable)
    one.step()
    try:
        one.save(path)
    except NotImplementedError as error:
        dist.barrier()  # the ranks are at the same point
        return str(error)
    return "saved"


def test_what_one_rank_cannot_write_fails_on_all_and_leaves_nothing(tmp_path: Path) -> None:
    errors = launch(save_unwritable, tmp_path / "kept", world=2)
    assert all("meta tensor" in error for error in errors), errors
    assert not (tmp_path / "kept").exists()


def save_uneven(path: Path) -> None:
    """One parameter was updated once, the others twice."""
    model = Stack()
    optimizer = AdamW(model.parameters(), lr=0.01)
    parts = {
        name: FlatPart(parameter, parameter.view(-1), 0, optimizer) for name, parameter in model.named_parameters()
    }
    for number in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if number:
            next(model.parameters()).grad = None
        optimizer.step()
    for part, parameter in zip(parts.values(), model.parameters(), strict=True):
        flat = part.owner
        assert flat is not None
        optimizer.state[flat] = {
            key: value.view(-1) if value.dim() else value for key, value in optimizer.state[parameter].items()
        }
    save_partitioned(path, model, optimizer, parts, {})


def load_uneven(path: Path) -> str:
    one = Flattened()
    before = one.flat.detach().clone()
    try:
        one.load(path)
    except ValueError as error:
        assert torch.equal(one.flat, before)
        return str(error)
    return "loaded"


def test_counts_of_updates_that_differ_are_refused_where_there_is_one(tmp_path: Path) -> None:
    launch(save_uneven, tmp_path / "kept", world=1)
    for error in launch(load_uneven, tmp_path / "kept", world=2):
        assert "one count of updates is kept for all parameters" in error
        assert "step 2" in error
        assert "step 1" in error
