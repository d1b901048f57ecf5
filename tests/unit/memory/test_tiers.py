"""One suite for every tier: what is written comes back, whatever the length, the address and the thread."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ciuic_dist.memory.file import FileTier
from ciuic_dist.memory.pool import PageMisuse
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.tier import PageError, Tier
from ciuic_dist.monitor.usage import TierUsage

BLOCK = 4096
PAGE = (1 << 20) + 2 * BLOCK  # more than one bounce buffer
SLOTS = 8
GUARD = 32
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, (1 << 20) + 1, PAGE - 1, PAGE]


def refuse(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FileTier:
    """On a file system that takes O_DIRECT and then can't do it."""

    def not_direct(operation: Callable[..., int]) -> Callable[..., int]:
        def move(file: int, *arguments: object) -> int:
            if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise refuse(errno.EINVAL)
            return operation(file, *arguments)

        return move

    monkeypatch.setattr(os, "preadv", not_direct(os.preadv))
    monkeypatch.setattr(os, "pwritev", not_direct(os.pwritev))
    return FileTier(folder, PAGE, SLOTS)


def named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FileTier:
    """On a file system without O_TMPFILE."""
    os_open = os.open

    def open_named(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise refuse(errno.EOPNOTSUPP)
        return os_open(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_named)
        return FileTier(folder, PAGE, SLOTS)


@pytest.fixture(params=["ram", "file", "tmpfs", "cached", "named"])
def tier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tier]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as in_memory:
        made: Tier
        match request.param:
            case "ram":
                made = RamTier("host", PAGE, SLOTS)
            case "file":
                made = FileTier(tmp_path, PAGE, SLOTS)
            case "tmpfs":
                made = FileTier(Path(in_memory), PAGE, SLOTS)
            case "cached":
                made = cached(tmp_path, monkeypatch)
            case _:
                made = named(tmp_path, monkeypatch)
        yield made
        assert not [*tmp_path.iterdir(), *Path(in_memory).iterdir()], "a file has a name"
        made.close()
        made.close()


def content(numel: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (numel,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def at_address(numel: int, shift: int) -> tuple[Tensor, Tensor]:
    """A buffer ``shift`` bytes after a block's start, and all memory around it: 7 everywhere."""
    around = torch.full((numel + 2 * BLOCK + GUARD,), 7, dtype=torch.uint8)
    start = -around.data_ptr() % BLOCK + shift
    return around[start : start + numel], around


@pytest.mark.parametrize("shift", [0, 1, 64])
@pytest.mark.parametrize("numel", LENGTHS)
def test_content_comes_back_and_nothing_else_changes(tier: Tier, numel: int, shift: int) -> None:
    for _ in range(3):
        slot = tier.pool.alloc()
    expected = content(numel, seed=numel)
    source, _ = at_address(numel, shift)
    source.copy_(expected)
    tier.write(slot, source, "p")
    assert torch.equal(source, expected)
    for into_shift in (shift, GUARD):
        into, around = at_address(numel, into_shift)
        tier.read(slot, into, "p")
        assert torch.equal(into, expected)
        into.fill_(7)
        assert bool((around == 7).all()), "written outside of the buffer"


def test_slots_do_not_overlap(tier: Tier) -> None:
    pages = {tier.pool.alloc(): content(PAGE, seed) for seed in range(SLOTS)}
    for slot, page in pages.items():
        tier.write(slot, page, f"page {slot}")
    pages[3] = content(17, seed=99)  # a shorter one takes the place
    tier.write(3, pages[3], "page 3")
    for slot, page in pages.items():
        into = torch.empty_like(page)
        tier.read(slot, into, f"page {slot}")
        assert torch.equal(into, page)


def test_threads_do_not_mix_pages(tier: Tier) -> None:
    slots = [tier.pool.alloc() for _ in range(SLOTS)]

    def work(slot: int) -> None:
        for turn in range(6):
            numel = LENGTHS[(slot + turn) % len(LENGTHS)]
            page = content(numel, seed=100 * slot + turn)
            into = torch.zeros_like(page)
            tier.write(slot, page, f"page {slot}")
            tier.read(slot, into, f"page {slot}")
            assert torch.equal(into, page)

    with ThreadPoolExecutor(SLOTS) as threads:
        list(threads.map(work, slots))


def test_a_page_has_one_length(tier: Tier) -> None:
    slot = tier.pool.alloc()
    with pytest.raises(PageError, match=f"exp_avg page 2 can't be read from {tier.name}.*nothing was written"):
        tier.read(slot, torch.empty(5, dtype=torch.uint8), "exp_avg page 2")
    tier.write(slot, content(5, seed=0), "exp_avg page 2")
    with pytest.raises(PageError, match=f"exp_avg page 2 can't be read from {tier.name}.*5 bytes were written, not 6"):
        tier.read(slot, torch.empty(6, dtype=torch.uint8), "exp_avg page 2")


def test_a_slot_not_in_use_is_refused(tier: Tier) -> None:
    slot = tier.pool.alloc()
    page = content(BLOCK, seed=0)
    tier.write(slot, page, "p")
    tier.pool.free(slot)
    for wrong in (slot, -1, SLOTS):
        with pytest.raises(PageMisuse, match=f"slot {wrong}"):
            tier.write(wrong, page, "p")
        with pytest.raises(PageMisuse, match=f"slot {wrong}"):
            tier.read(wrong, page, "p")


@pytest.mark.parametrize(
    "buffer",
    [
        torch.empty(0, dtype=torch.uint8),
        torch.empty(PAGE + 1, dtype=torch.uint8),
        torch.empty(2, 2, dtype=torch.uint8),
        torch.empty(8, dtype=torch.uint8)[::2],
        torch.empty(8, dtype=torch.float32),
        torch.empty(8, dtype=torch.uint8, device="meta"),
    ],
    ids=["empty", "long", "2d", "strided", "float", "device"],
)
def test_a_buffer_of_another_kind_is_refused(tier: Tier, buffer: Tensor) -> None:
    slot = tier.pool.alloc()
    with pytest.raises(ValueError, match=f"1 to {PAGE} elements"):
        tier.write(slot, buffer, "p")
    with pytest.raises(ValueError, match=f"1 to {PAGE} elements"):
        tier.read(slot, buffer, "p")


def test_usage_is_in_whole_slots(tier: Tier) -> None:
    slots = [tier.pool.alloc() for _ in range(3)]
    tier.write(slots[0], content(1, seed=0), "p")
    tier.pool.free(slots[1])
    assert tier.usage() == TierUsage(used=2 * PAGE, peak=3 * PAGE, budget=SLOTS * PAGE)
