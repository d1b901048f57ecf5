"""Every change that a checkpoint makes to the disk; a crash may come between any two.

Nothing is durable before it is synced: a file's content by ``sync``, its name by ``sync_folder``.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

Buffer = bytes | bytearray | memoryview | mmap.mmap


def create(path: Path) -> int:
    """A new file to write to. Raises FileExistsError where there is one."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write(descriptor: int, content: Buffer) -> None:
    """All of ``content``, at the end of what was written."""
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def cut(descriptor: int, nbytes: int) -> None:
    """The file ends there."""
    os.ftruncate(descriptor, nbytes)


def sync(descriptor: int) -> None:
    """What was written to the file survives a loss of power."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """So do the names in the folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """A new file, synced; its name is not."""
    descriptor = create(path)
    try:
        write(descriptor, content)
        sync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Raises FileExistsError where there is one."""
    path.mkdir()


def rename(old: Path, new: Path) -> None:
    """At once, also over an empty folder."""
    old.rename(new)


def delete(path: Path) -> None:
    """A file, or a folder and all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            delete(entry)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
