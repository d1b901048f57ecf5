"""Published weights go straight into shards and tiers: each rank reads its own slices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

import ciuic_dist as cd
from ciuic_dist.memory.budget import BudgetError, parse_size
from ciuic_dist.memory.process import return_freed_memory
from ciuic_dist.models.safetensors import FileTensor
from tests.dist.launch import launch
from tests.dist.test_process_memory import SLACK, process_bytes
from tests.unit.published import FAMILIES, on_meta, reference, saved, tensors

DEVICES = {"llama": "3MB", "qwen3": "3MB", "gpt2": "4600KB", "deepseek": "5MB"}
"""What holds the least that each needs, and not all of it."""
LARGE_DEVICE = "40MB"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each family's weights."""
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in made.items():
        saved(family, folder)
    return made


def load(folder: Path, stage: int, memory: cd.Memory | None) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """The sharded model's parameters on rank 0, every rank's buffers, and its bytes on disk."""
    model = cd.shard(on_meta(folder), stage=stage, memory=memory, weights=folder)
    tiers = cd.status(model).tiers
    below = tiers["nvme"].peak if "nvme" in tiers else 0
    return cd.full_state_dict(model), dict(model.named_buffers()), below


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("world", "stage", "spills"), [(1, 0, False), (2, 1, False), (3, 3, False), (2, 3, True)])
def test_shards_hold_what_transformers_reads(
    family: str, world: int, stage: int, spills: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    expected = reference(folders[family])
    memory = cd.Memory(device=DEVICES[family], nvme=f"{tmp_path}:100MB") if spills else None
    found = launch(load, folders[family], stage, memory, world=world)
    whole = found[0][0]
    assert whole.keys() == expected.state_dict().keys()
    assert all(torch.equal(whole[name], value) for name, value in expected.state_dict().items())
    for _, buffers, below in found:
        assert bool(below) == spills
        assert all(torch.equal(buffers[name], value) for name, value in expected.named_buffers())


def count_bytes(folder: Path) -> tuple[int, int]:
    """What this rank reads of files, and what it keeps of parameters."""
    read = 0
    original = FileTensor.read

    def counting(source: FileTensor, start: int, stop: int) -> Iterator[Tensor]:
        nonlocal read
        for part in original(source, start, stop):
            read += part.nbytes
            yield part

    FileTensor.read = counting  # type: ignore[assignment, method-assign]
    try:
        model = cd.shard(on_meta(folder), weights=folder)
    finally:
        FileTensor.read = original  # type: ignore[method-assign]
    return read, sum(parameter.nbytes for parameter in tensors(model).values())


@pytest.mark.parametrize("family", ["llama", "deepseek"])
def test_a_rank_reads_its_own_slices_only(family: str, folders: dict[str, Path]) -> None:
    ranks = launch(count_bytes, folders[family], world=2)
    whole = ranks[0][1]
    assert sum(read for read, _ in ranks) < 1.1 * whole  # an expert that two ranks share is read by both
    assert all(read < 0.6 * whole for read, _ in ranks)


@contextmanager
def weighed() -> Iterator[list[int]]:
    """By how many bytes this process had grown, every few milliseconds, its part of shared memory included."""
    before, seen, over = process_bytes(), [0], Event()

    def weigh() -> None:
        while not over.wait(0.002):
            seen.append(process_bytes() - before)

    thread = Thread(target=weigh)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def load_within(folder: Path, nvme: str) -> tuple[dict[str, Tensor], int]:
    """The parameters on rank 0, and by how much the process grew at most while it loaded its own."""
    import transformers.conversion_mapping
    import transformers.core_model_loading  # noqa: F401 (code is none of the weights)

    model = on_meta(folder)
    return_freed_memory()
    with weighed() as seen:
        cd.shard(model, memory=cd.Memory(device=LARGE_DEVICE, nvme=f"{nvme}:1GB"), weights=folder)
    return cd.full_state_dict(model), max(seen)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_weights_of_200_mb_are_loaded_within_40(world: int, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6}
    source = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=28, **shape))
    folder = tmp_path / "weights"
    source.save_pretrained(folder, max_shard_size="30MB")
    nbytes = sum(4 * prod(parameter.shape) for parameter in source.parameters())
    assert nbytes > 195e6
    ranks = launch(load_within, folder, str(tmp_path), world=world)
    whole = ranks[0][0]
    assert all(torch.equal(whole[name], value) for name, value in source.state_dict().items())
    assert all(10_000_000 < grown <= parse_size(LARGE_DEVICE, "device") + SLACK for _, grown in ranks)


def refuse_to_read_whole(folder: Path, nvme: str) -> str:
    with pytest.warns(UserWarning, match="each rank reads all of"), pytest.raises(BudgetError) as refused:
        cd.shard(on_meta(folder), memory=cd.Memory(device="3MB", nvme=f"{nvme}:100MB"), weights=folder)
    return str(refused.value)


def test_what_can_only_be_read_whole_is_refused_within_a_budget(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    model = saved("gpt2", folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (message,) = launch(refuse_to_read_whole, folder, str(tmp_path), world=1)
    assert message.startswith("memory.device is 2.86 MiB and reading these weights takes 3.")


def refuse(folder: Path) -> list[str]:
    messages = []
    with_values = reference(folder)
    for model, error in (
        (with_values, "weights= is for a model without values"),
        (torch.nn.Linear(2, 2, device="meta"), "weights= is for models of transformers, and Linear is none"),
    ):
        with pytest.raises(ValueError, match=error) as refused:
            cd.shard(model, weights=folder)
        messages.append(str(refused.value))
    return messages


def test_models_that_take_no_weights_are_refused(folders: dict[str, Path]) -> None:
    launch(refuse, folders["llama"], world=2)


def lose_on_rank_1(folder: Path) -> str:
    import torch.distributed as dist

    mine = folder if dist.get_rank() == 0 else folder / "not" / "here"
    model = on_meta(folder)
    with pytest.raises((ValueError, OSError)) as refused:
        cd.shard(model, weights=mine)
    return str(refused.value)


def test_files_that_one_rank_lacks_are_an_error_on_all(folders: dict[str, Path]) -> None:
    first, second = launch(lose_on_rank_1, folders["llama"], world=2)
    assert first == second
    assert "not/here is neither a folder nor a hub id" in first
