"""Which files the training text comes from."""

from __future__ import annotations

import logging
import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ciuic_dist.data import formats
from ciuic_dist.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABULAR: Final[dict[str, formats.Reader]] = {
    ".jsonl": formats.json_lines,
    ".ndjson": formats.json_lines,
    ".parquet": formats.parquet,
}
_TEXT: Final = frozenset({".txt", ".text", ".md", ".rst", ".py"})  # in a folder these must decode

_LIBRARY_LIMIT: Final = 32 << 20  # bytes
# Installed packages, tests and their fixtures, tables of characters: not prose or code to learn from.
_LIBRARY_WITHOUT: Final = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    | {"idlelib", "lib2to3", "distutils", "ensurepip", "turtledemo", "encodings", "pydoc_data"}
)

_log = logging.getLogger(__name__)


def describe(path: str | None) -> str:
    """How error messages call the source."""
    return "the Python standard library" if path is None else path


def read(path: str | None, field: str) -> Iterator[bytes]:
    """Pieces of every document under ``path`` (None: the standard library), in a fixed order.

    ``field`` names the text in JSON lines and Parquet. Raises DataError at once where there is
    nothing to read at ``path``, and while reading where a file can't be used.
    """
    if path is None:
        return _standard_library(Path(sysconfig.get_paths()["stdlib"]))
    if not path.strip():
        raise DataError("data.path is empty: give a file or a folder, or null for the Python standard library")
    root = Path(path).expanduser()
    if root.is_file():
        return _guarded(root, field)
    if root.is_dir():
        return _folder(root, field)
    what = "is neither a file nor a folder" if root.exists() else "does not exist"
    raise DataError(
        f"data.path={path} {what} (seen from {Path.cwd()}): give a text, .jsonl or .parquet file or a folder"
    )


def _folder(root: Path, field: str) -> Iterator[bytes]:
    others = []
    for path in _files(root):
        if path.suffix.lower() in _TABULAR or path.suffix.lower() in _TEXT or _looks_like_text(path):
            yield from _guarded(path, field)
        else:
            others.append(str(path.relative_to(root)))
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        _log.warning("%d of the files in %s are left out, since they are not text: %s", len(others), root, some)


def _files(root: Path, without: frozenset[str] = frozenset()) -> list[Path]:
    """Every file under ``root`` by its path; hidden ones and folders named in ``without`` are left out."""
    found: list[Path] = []
    for folder, names, files in os.walk(root, onerror=_raise):
        names[:] = [name for name in names if name not in without and not name.startswith(".")]
        found += (Path(folder, name) for name in files if not name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _looks_like_text(path: Path) -> bool:
    """Whether a file of unknown kind begins without a NUL byte, which is git's test too."""
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(8192)
    except OSError as error:
        raise _unreadable(path, error) from error


def _guarded(path: Path, field: str) -> Iterator[bytes]:
    reader = _TABULAR.get(path.suffix.lower(), formats.text)
    try:
        yield from reader(path, field)
    except OSError as error:
        raise _unreadable(path, error) from error


def _raise(error: OSError) -> None:
    raise _unreadable(Path(error.filename), error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} can't be read: {error.strerror or error}")


def _standard_library(root: Path) -> Iterator[bytes]:
    """Sources of the running Python: real text that every machine has."""
    size = 0
    for path in _files(root, _LIBRARY_WITHOUT):
        # _sysconfigdata holds the paths of this machine's build.
        if path.suffix != ".py" or path.name.startswith("_sysconfigdata"):
            continue
        size += path.stat().st_size
        if size > _LIBRARY_LIMIT:
            return
        yield from _guarded(path, "")
