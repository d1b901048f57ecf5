"""When a tier fails or a budget is too small, there is one error that names it, and no wrong step."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ciuic_dist as cd
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.tier import PageError
from ciuic_dist.sharding.registry import sharded_of
from tests.dist.launch import launch
from tests.dist.models import Stack
from tests.dist.spilling import Deep
from tests.dist.train_jobs import TINY, Job, losses, steps_recorded


def stack() -> nn.Module:
    torch.manual_seed(0)
    return Stack(48, 200)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    loss: Tensor = model(torch.ones(4, 8)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def spill_files(folder: str, process: int | str = "self") -> list[Path]:
    """Where a process has files without a name of ``folder`` open."""
    found = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            if str(entry.readlink()).startswith(f"{folder}/"):
                found.append(entry)
    return found


def flip_every_page(folder: str, process: int | str = "self") -> None:
    for file in spill_files(folder, process):
        content = bytearray(file.read_bytes())
        content[100::4096] = bytes(byte ^ 1 for byte in content[100::4096])
        with file.open("r+b") as opened:  # never shorter meanwhile
            opened.write(content)


def cut_off(folder: str, process: int | str = "self") -> None:
    for file in spill_files(folder, process):
        os.truncate(file, 4096 + 100)


harms = pytest.mark.parametrize("harm", [flip_every_page, cut_off])


def train_on_after(harm: Callable[[], None], memory: cd.Memory) -> tuple[list[str], list[float]]:
    """Two steps, ``harm``, then three attempts at a step: their errors or losses."""
    model = cd.shard(stack(), memory=memory)
    optimizer = cd.AdamW(model.parameters())
    step(model, optimizer)
    step(model, optimizer)
    spill = sharded_of(model).spill
    assert spill is not None
    for pager in (spill.states, spill.gradients):
        pager.rest()
    harm()
    errors, losses = [], []
    for _ in range(3):
        try:
            losses.append(step(model, optimizer))
        except (PageError, RuntimeError) as error:
            errors.append(str(error))
    return errors, losses


@harms
def test_harm_to_the_file_ends_training_and_names_file_and_page(harm: Callable[[str], None], tmp_path: Path) -> None:
    memory = cd.Memory(device="900KB", nvme=f"{tmp_path}:16MB")
    [(errors, losses)] = launch(train_on_after, partial(harm, str(tmp_path)), memory, world=1)
    assert len(errors) == 3
    assert not losses
    assert str(tmp_path) in errors[0]
    assert re.search(r"blocks\.\d .* page \d+", errors[0])


ENDLESS = (*TINY, "model.overrides.n_embd=128", "train.steps=100000", "train.checkpoint_every=2", "run.name=run")
COMPARED = 8  # steps


def first_losses(folder: Path, *arguments: str) -> tuple[list[float], str]:
    """Of a run that gets so far, and what rank 0 has said."""
    job = Job(folder, *arguments, world=2, log="whole")
    job.wait_until(lambda: steps_recorded(folder / "runs/run") >= COMPARED)
    job.kill()
    return losses(folder / "runs/run")[:COMPARED], (folder / "whole-0.out").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """With memory to spare."""
    return first_losses(tmp_path_factory.mktemp("undisturbed"), *ENDLESS)[0]


@harms
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)], ids=str)
def test_a_run_whose_file_is_harmed_goes_on_from_a_checkpoint(
    harm: Callable[[str, int | str], None], victims: tuple[int, ...], undisturbed: list[float], tmp_path: Path
) -> None:
    scratch, run = tmp_path / "scratch", tmp_path / "runs/run"
    scratch.mkdir()
    within = (*ENDLESS, "memory.device=4MB", f"memory.nvme={scratch}:64MB")
    job = Job(tmp_path, *within, world=2)
    job.wait_until(lambda: steps_recorded(run) >= 4)
    for victim in victims:
        harm(str(scratch), job.ranks[victim].pid or 0)
    ended = job.wait()
    assert ended.codes == [1, 1], ended
    told = [rank for rank, error in enumerate(ended.err) if re.search(rf"error: .+ page \d+ .*{scratch}\)", error)]
    assert told, ended
    for rank, error in enumerate(ended.err):
        assert error.count("error:") == 1, ended
        assert (rank in told and rank in victims) or re.search(rf"error: rank {1 - rank} (.*ended|raised)", error), (
            ended
        )
    assert losses(run)[:COMPARED] == undisturbed[: steps_recorded(run)]
    found, said = first_losses(tmp_path, *within)
    assert "resuming" in said
    assert found == undisturbed


def remove(folder: str) -> None:
    Path(folder).rmdir()


def test_the_folder_may_go_while_training(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    memory = cd.Memory(device="900KB", nvme=f"{folder}:16MB")
    [(errors, losses)] = launch(train_on_after, partial(remove, str(folder)), memory, world=1)
    assert errors == []
    assert len(losses) == 3


def refusal(memory: cd.Memory) -> str:
    model = stack()
    with pytest.raises(BudgetError) as caught:
        step(model := cd.shard(model, memory=memory), cd.AdamW(model.parameters()))
    return str(caught.value)


def below(tier: str, kilobytes: int, folder: Path) -> cd.Memory:
    """One tier of that size, of which each rank of a host has its part."""
    size = f"{kilobytes}KB"
    return cd.Memory(
        "900KB", host=size if tier == "host" else None, nvme=f"{folder}:{size}" if tier == "nvme" else None
    )


either_tier = pytest.mark.parametrize("tier", ["host", "nvme"])
one_rank_or_two = pytest.mark.parametrize("world", [1, 2])


@either_tier
@one_rank_or_two
def test_a_full_tier_is_named_in_the_first_step(tier: str, world: int, tmp_path: Path) -> None:
    for message in launch(refusal, below(tier, 300, tmp_path), world=world):
        assert f"memory.{tier}" in message


def test_a_tier_with_too_little_room_for_parameters_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    tier = f"{tmp_path}:100KB"
    [message] = launch(refusal, cd.Memory(device="900KB", nvme=tier), world=1)
    found = re.search(r"have [\d.]+ KiB for this rank, and parameters alone take ([\d.]+ KiB) there", message)
    assert found is not None
    [message] = launch(refusal, cd.Memory(device="900KB", nvme=f"{tmp_path}:{found[1]}"), world=1)
    assert "there and gradients" in message


def uses_after_an_error(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> list[str]:
    """What uses of the model say when a step has raised."""
    with pytest.raises(ArithmeticError):
        step(model, optimizer)
    found = []
    for use in (
        partial(model, torch.ones(4, 8)),
        optimizer.step,
        partial(cd.full_state_dict, model),
        partial(cd.save, f"{folder}/other", model=model),
    ):
        with pytest.raises(RuntimeError) as caught:
            use()
        found.append(str(caught.value))
    return found


def loads_with_little_and_with_plenty(little: cd.Memory, plenty: cd.Memory, folder: str) -> tuple[str, bool]:
    """What a load says that finds no room for the state, and whether training goes on where there is room."""
    model = cd.shard(stack(), memory=plenty)
    optimizer = cd.AdamW(model.parameters())
    step(model, optimizer)
    cd.save(f"{folder}/checkpoint", model=model, optimizer=optimizer)
    losses = [step(model, optimizer) for _ in range(3)]
    with pytest.raises(BudgetError) as full:
        loaded(folder, little)
    model, optimizer = loaded(folder, plenty)
    return str(full.value), [step(model, optimizer) for _ in range(3)] == losses


def loaded(folder: str, memory: cd.Memory) -> tuple[nn.Module, cd.AdamW]:
    model = cd.shard(stack(), memory=memory)
    optimizer = cd.AdamW(model.parameters())
    cd.load(f"{folder}/checkpoint", model=model, optimizer=optimizer)
    return model, optimizer


def uses_when_an_update_raises(folder: str) -> tuple[list[str], bool]:
    """Also whether training goes on after a load as it did before."""
    model = cd.shard(stack(), memory=cd.Memory(device="900KB", nvme=f"{folder}:16MB"))
    optimizer = cd.AdamW(model.parameters())
    step(model, optimizer)
    cd.save(f"{folder}/checkpoint", model=model, optimizer=optimizer)
    losses = [step(model, optimizer) for _ in range(3)]
    update, calls = optimizer.inner.step, count()

    def fail() -> None:
        update()
        if next(calls) == 2:
            raise ArithmeticError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer.inner, "step", fail)
        found = uses_after_an_error(model, optimizer, folder)
    cd.load(f"{folder}/checkpoint", model=model, optimizer=optimizer)
    optimizer.zero_grad()
    return found, [step(model, optimizer) for _ in range(3)] == losses


TORN = "an update that raised has changed a part of it, which can't be undone; load a checkpoint of model and optimizer"


@either_tier
@one_rank_or_two
def test_a_checkpoint_of_state_that_has_no_room_goes_on_where_there_is_some(
    tier: str, world: int, tmp_path: Path
) -> None:
    little, plenty = below(tier, 600, tmp_path), below(tier, 16000, tmp_path)
    for full, goes_on in launch(loads_with_little_and_with_plenty, little, plenty, str(tmp_path), world=world):
        assert re.search(r"memory\.host (or|and) memory\.nvme .* for each rank", full)
        assert goes_on


def test_a_load_makes_it_useful_again(tmp_path: Path) -> None:
    for uses, loaded in launch(uses_when_an_update_raises, str(tmp_path)):
        assert [TORN in use for use in uses] == [True] * 4
        assert loaded


def refused_before_it_begins() -> float:
    """The loss of a model beside which another wasn't ready for the update."""
    ready, other = cd.shard(stack(), stage=1), cd.shard(stack(), stage=1)
    optimizer = cd.AdamW([*ready.parameters(), *other.parameters()])
    ready(torch.ones(4, 8)).sum().backward()
    with cd.no_sync(other):
        other(torch.ones(4, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="accumulated under no_sync and never reduced"):
        optimizer.step()
    loss: Tensor = ready(torch.ones(4, 8)).sum()
    return loss.item()


def test_an_update_that_is_refused_before_it_begins_leaves_models_useful() -> None:
    found = launch(refused_before_it_begins)
    assert found == [pytest.approx(stack()(torch.ones(4, 8)).sum().item())] * 2


@pytest.mark.parametrize("device", ["100KB", "500KB"])
def test_a_small_budget_is_refused_with_what_is_needed(device: str, tmp_path: Path) -> None:
    [message] = launch(refusal, cd.Memory(device=device, nvme=f"{tmp_path}:16MB"), world=1)
    assert re.search(r"at least \d+\.\d\d [KM]iB are needed", message)


class Shuffled(Stack):
    """Runs its blocks in another order each time."""

    calls = 0

    def run(self, x: Tensor) -> Tensor:
        self.calls += 1
        order = torch.randperm(len(self.blocks), generator=torch.Generator().manual_seed(self.calls))
        for index in order.tolist():
            x = self.blocks[index](x)
        return x


def losses_of_shuffled(memory: cd.Memory | None) -> list[float]:
    torch.manual_seed(0)
    model = cd.shard(Shuffled(48, 200), memory=memory)
    optimizer = cd.AdamW(model.parameters())
    return [step(model, optimizer) for _ in range(6)]


@pytest.mark.parametrize("world", [1, 2])
def test_an_order_that_changes_is_served(world: int, tmp_path: Path) -> None:
    memory = cd.Memory(device="900KB", nvme=f"{tmp_path}:16MB")
    assert launch(losses_of_shuffled, memory, world=world) == launch(losses_of_shuffled, None, world=world)


def read_while_away(folder: str) -> str:
    model = cd.shard(stack(), memory=cd.Memory(device="900KB", nvme=f"{folder}:16MB"))
    with pytest.raises(RuntimeError) as caught:
        model.get_parameter("blocks.0.up.weight")[0]
    return str(caught.value)


def test_a_parameter_that_is_away_cannot_be_read(tmp_path: Path) -> None:
    assert "storage" in launch(read_while_away, str(tmp_path), world=1)[0]


def load_after(
    harm: Callable[[], None], memory: cd.Memory, folder: str, precision: str | None
) -> tuple[list[float], list[float], float]:
    """The losses of four steps, and of the last two once more: harmed, refused, and loaded into the same model.

    Also which part of the parameters fits the device.
    """
    torch.manual_seed(0)
    model = cd.shard(Deep(), memory=memory, mixed_precision=precision)
    optimizer = cd.AdamW(model.parameters())
    undisturbed = [step(model, optimizer) for _ in range(2)]
    cd.save(folder, model=model, optimizer=optimizer)
    undisturbed += [step(model, optimizer) for _ in range(2)]
    spill = sharded_of(model).spill
    assert spill is not None
    for _ in range(2):
        for pager in (spill.states, spill.gradients):
            pager.rest()
        harm()
        with pytest.raises(PageError):
            step(model, optimizer)
        optimizer.zero_grad()
        cd.load(folder, model=model, optimizer=optimizer)
        again = [step(model, optimizer) for _ in range(2)]
    return undisturbed, again, spill.homes.budget / sum(p.nbytes for p in model.parameters())


@harms
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_a_checkpoint_can_be_loaded_into_what_was_harmed(
    harm: Callable[[str], None], precision: str | None, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    memory = cd.Memory(device="600KB", nvme=f"{scratch}:32MB")
    [(undisturbed, again, fits)] = launch(
        load_after, partial(harm, str(scratch)), memory, str(tmp_path / "saved"), precision, world=1
    )
    assert fits < 1
    assert again == undisturbed[2:]
