"""What can go wrong with a file: each is an error that names it and the page, and nothing wrong is read back."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.file import FileTier
from ciuic_dist.memory.host import allocate
from ciuic_dist.memory.tier import PageError

BLOCK = 4096
PAGE = 16 * BLOCK
NAME = "layers.3 (torch.float32) exp_avg page 2"
Vectored = Callable[[int, list[memoryview], int], int]


def in_use(folder: Path) -> list[Path]:
    """Where this process has files of ``folder`` open; those without a name can be opened there."""
    opened = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if str(descriptor.readlink()).startswith(f"{folder}/"):
                opened.append(descriptor)
        except FileNotFoundError:  # that of the listing itself
            continue
    return opened


def content(numel: int = PAGE, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (numel,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def aligned(page: Tensor) -> Tensor:
    """``page`` at an address that needs no bounce buffer."""
    room = allocate(2 << 20, torch.uint8, torch.device("cpu"))
    return room[: page.numel()].copy_(page)


def read(tier: FileTier, slot: int, numel: int = PAGE) -> Tensor:
    into = aligned(torch.zeros(numel, dtype=torch.uint8))
    tier.read(slot, into, NAME)
    return into


@contextmanager
def small_drive(folder: Path, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes in memory."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # also where a failed test left a file open


@pytest.mark.parametrize("at", [0, PAGE // 2, PAGE - 1])
def test_a_changed_byte_is_found(tmp_path: Path, at: int) -> None:
    with closing(FileTier(tmp_path, PAGE, 2)) as tier:
        pages = {tier.pool.alloc(): content(seed=seed) for seed in range(2)}
        for slot, page in pages.items():
            tier.write(slot, page, NAME)
        (file,) = in_use(tmp_path)
        with file.open("r+b", buffering=0) as changed:
            changed.seek(PAGE + at)
            changed.write(bytes([int(pages[1][at]) ^ 1]))
            os.fsync(changed)
        assert torch.equal(read(tier, 0), pages[0])
        with pytest.raises(PageError) as error:
            read(tier, 1)
        assert all(text in str(error.value) for text in (NAME, str(tmp_path), f"at byte {PAGE} "))
        tier.write(1, pages[1], NAME)
        assert torch.equal(read(tier, 1), pages[1])


@pytest.mark.parametrize("left", [0, BLOCK, BLOCK + 100, PAGE - 1])
def test_a_file_cut_short_is_found(tmp_path: Path, left: int) -> None:
    with closing(FileTier(tmp_path, PAGE, 1)) as tier:
        tier.write(tier.pool.alloc(), content(), NAME)
        (file,) = in_use(tmp_path)
        os.truncate(file, left)
        with pytest.raises(PageError, match=r"exp_avg page 2 can't be read from nvme \(.*it ends at byte") as error:
            read(tier, 0)
        assert str(tmp_path) in str(error.value)


def test_a_budget_beyond_the_drive_is_refused_at_the_start(tmp_path: Path) -> None:
    with small_drive(tmp_path / "drive", 8 * PAGE) as folder:
        with pytest.raises(BudgetError, match=f"needs 576.00 KiB in {folder}, which has 512.00 KiB free"):
            FileTier(folder, PAGE, 9)
        assert not in_use(folder)
        with closing(FileTier(folder, PAGE, 6)), pytest.raises(BudgetError, match=r"has 128\.00 KiB free"):
            FileTier(folder, PAGE, 3)  # what another tier reserved is gone, written or not


def test_a_quota_is_a_full_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def posix_fallocate(*_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    with pytest.raises(BudgetError, match=f"needs 64.00 KiB in {tmp_path}") as error:
        FileTier(tmp_path, PAGE, 1)
    assert not in_use(tmp_path), f"its space is held for as long as {error} is"


def test_a_drive_that_runs_full_names_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def posix_fallocate(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    with small_drive(tmp_path / "drive", 8 * PAGE) as folder, closing(FileTier(folder, PAGE, 4)) as tier:
        with pytest.raises(BudgetError, match=f"needs 576.00 KiB in {folder}"):
            FileTier(folder, PAGE, 9)
        pages = {tier.pool.alloc(): content(seed=seed) for seed in range(2)}
        tier.write(0, pages[0], NAME)
        (folder / "other").write_bytes(bytes(7 * PAGE - BLOCK))
        with pytest.raises(PageError, match=r"exp_avg page 2 can't be written to nvme \(.*No space left") as error:
            tier.write(1, pages[1], NAME)
        assert str(folder) in str(error.value)
        with pytest.raises(PageError, match="nothing was written there"):
            read(tier, 1)
        assert torch.equal(read(tier, 0), pages[0])
        (folder / "other").unlink()
        tier.write(1, pages[1], NAME)
        assert torch.equal(read(tier, 1), pages[1])


@pytest.mark.parametrize(("most", "told"), [(BLOCK, BLOCK), (3 * BLOCK, 3 * BLOCK - 100)], ids=["blocks", "odd"])
@pytest.mark.parametrize("numel", [PAGE, PAGE - 100])
def test_short_moves_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numel: int, most: int, told: int
) -> None:
    def less(operation: Vectored) -> Vectored:
        def move(file: int, buffers: list[memoryview], offset: int) -> int:
            return min(operation(file, [buffers[0][:most]], offset), told if len(buffers[0]) > most else most)

        return move

    page = content(numel)
    with closing(FileTier(tmp_path, PAGE, 1)) as tier:
        monkeypatch.setattr(os, "pwritev", less(os.pwritev))
        monkeypatch.setattr(os, "preadv", less(os.preadv))
        tier.write(tier.pool.alloc(), aligned(page), NAME)
        assert torch.equal(read(tier, 0, numel), page)


def test_a_drive_that_is_busy_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def busy(operation: Vectored) -> Vectored:
        def move(file: int, buffers: list[memoryview], offset: int) -> int:
            asked.append(offset)
            if len(asked) % 3:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return operation(file, buffers, offset)

        return move

    page = content()
    with closing(FileTier(tmp_path, PAGE, 1)) as tier:
        monkeypatch.setattr(os, "pwritev", busy(os.pwritev))
        monkeypatch.setattr(os, "preadv", busy(os.preadv))
        tier.write(tier.pool.alloc(), aligned(page), NAME)
        assert torch.equal(read(tier, 0), page)
    assert asked == [0] * 6


def test_a_drive_that_fails_names_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(FileTier(tmp_path, PAGE, 1)) as tier:
        tier.write(tier.pool.alloc(), content(), NAME)
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", fail)
            with pytest.raises(PageError, match=r"exp_avg page 2 can't be read from nvme \(.*Input/output error"):
                read(tier, 0)
        assert torch.equal(read(tier, 0), content())
        monkeypatch.setattr(os, "pwritev", lambda *_: 0)
        with pytest.raises(PageError, match=r"exp_avg page 2 can't be written to nvme \(.*ends at byte 0"):
            tier.write(0, content(seed=1), NAME)
        with pytest.raises(PageError, match="nothing was written there"):
            read(tier, 0)  # neither page is whole


def test_the_folder_may_go_while_the_file_is_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "spill"
    folder.mkdir()
    with closing(FileTier(folder, PAGE, 1)) as tier:
        folder.rmdir()
        tier.write(tier.pool.alloc(), content(), NAME)
        assert torch.equal(read(tier, 0), content())


HOLDER = """
import sys, time
from pathlib import Path
import torch
from ciuic_dist.memory.file import FileTier
tier = FileTier(Path(sys.argv[1]), 1 << 20, 16)
tier.write(tier.pool.alloc(), torch.ones(1 << 20, dtype=torch.uint8), "page")
print("written", flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_nothing_behind(tmp_path: Path) -> None:
    holding = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(holding, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"written\n"
        finally:
            holder.kill()
    assert holder.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_the_file_is_private_and_goes_with_its_tier(tmp_path: Path) -> None:
    tier = FileTier(tmp_path, PAGE, 2)
    (file,) = in_use(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_blocks * 512 >= 2 * PAGE, "its space is reserved"
    del tier
    gc.collect()
    assert not in_use(tmp_path)


def test_a_closed_tier_touches_no_file(tmp_path: Path) -> None:
    tier = FileTier(tmp_path, PAGE, 1)
    slot = tier.pool.alloc()
    tier.close()
    other = tmp_path / "other"
    with other.open("w+b"):  # likely to get the tier's old descriptor
        with pytest.raises(PageError, match="Bad file descriptor"):
            tier.write(slot, content(), NAME)
        assert other.stat().st_size == 0


def test_the_page_cache_is_passed_by_where_that_can_be(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{tmp_path} is on a file system without O_DIRECT")
    with closing(FileTier(tmp_path, PAGE, 1)):
        (file,) = in_use(tmp_path)
        flags = Path("/proc/self/fdinfo", file.name).read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_DIRECT


def test_bytes_are_counted(tmp_path: Path) -> None:
    with closing(FileTier(tmp_path, PAGE, 1)) as tier:
        slot = tier.pool.alloc()
        for _ in range(3):
            tier.write(slot, content(1000), NAME)
        read(tier, slot, 1000)
        assert (tier.bytes_written, tier.bytes_read) == (3000, 1000)


@pytest.mark.parametrize(("page_bytes", "slots"), [(PAGE - 1, 1), (0, 1), (-BLOCK, 1), (PAGE, 0)])
def test_sizes_that_make_no_file_are_refused(tmp_path: Path, page_bytes: int, slots: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        FileTier(tmp_path, page_bytes, slots)


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        FileTier(tmp_path / "missing", PAGE, 1)
