"""What a checkpoint's indexes and its manifest say, as JSON whose last field is the digest of all before it.

A page's checksum is in its rank's index, an index's digest in the manifest, so the manifest's stands for everything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any, Final

from ciuic_dist.checkpoint.digests import digest
from ciuic_dist.checkpoint.errors import corrupt
from ciuic_dist.checkpoint.pages import Page

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_SEAL = ',\n"digest": "'

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class TensorBox:
    """A rectangular part of a tensor of ``shape``: ``offsets`` and ``sizes`` a dimension; ``dtype`` as in "float32"."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the box."""
        return prod(self.sizes)


@dataclass(frozen=True, slots=True)
class Entry:
    """A box of a tensor, rows one after the other, or (``box`` None) a pickled object; and its pages."""

    name: str
    box: TensorBox | None
    pages: tuple[Page, ...]


@dataclass(frozen=True, slots=True)
class RankFiles:
    """The two files of a rank, sizes in bytes."""

    rank: int
    pages_bytes: int
    index_bytes: int
    index_digest: str

    @property
    def pages(self) -> str:
        """The name of the file of pages."""
        return f"rank-{self.rank:05d}.pages"

    @property
    def index(self) -> str:
        """The name of its index."""
        return f"rank-{self.rank:05d}.index"


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files of a checkpoint.

    ``paths``: of entries that lay in dicts and lists when torch.distributed.checkpoint was given them, where.
    """

    files: tuple[RankFiles, ...]
    packages: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, KeyPath] | None = None


def packages() -> dict[str, str]:
    """What this process runs on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("ciuic_dist", "torch"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def index_to_bytes(entries: Sequence[Entry]) -> bytes:
    """The content of an index."""
    return _sealed({"format": FORMAT, "entries": [_entry_to_json(entry) for entry in entries]})


def index_from_bytes(content: bytes, file: Path) -> list[Entry]:
    """What ``index_to_bytes`` was given. Raises CorruptCheckpoint naming ``file``, ValueError for a newer format."""
    return [_entry_from_json(entry) for entry in _unsealed(content, file)["entries"]]


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """The content of a manifest."""
    return _sealed({"format": FORMAT, **asdict(manifest)})


def manifest_from_bytes(content: bytes, file: Path) -> Manifest:
    """What ``manifest_to_bytes`` was given. Raises as ``index_from_bytes``."""
    fields = _unsealed(content, file)
    paths = fields["paths"]
    return Manifest(
        tuple(RankFiles(**files) for files in fields["files"]),
        fields["packages"],
        None if paths is None else {name: tuple(path) for name, path in paths.items()},
    )


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    kind = {"kind": "object"} if entry.box is None else {"kind": "tensor", **asdict(entry.box)}
    pages = [[page.offset, page.stored, page.raw, page.codec, page.checksum] for page in entry.pages]
    return {"name": entry.name, **kind, "pages": pages}


def _entry_from_json(fields: dict[str, Any]) -> Entry:
    box = None
    if fields["kind"] == "tensor":
        shape, offsets, sizes = (tuple(fields[key]) for key in ("shape", "offsets", "sizes"))
        box = TensorBox(fields["dtype"], shape, offsets, sizes)
    return Entry(fields["name"], box, tuple(Page(*page) for page in fields["pages"]))


def _sealed(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields, separators=(",", ":")).removesuffix("}").encode()
    return body + f'{_SEAL}{digest(body)}"}}\n'.encode()


def _unsealed(content: bytes, file: Path) -> dict[str, Any]:
    body, _, _ = content.rpartition(_SEAL.encode())
    if content != body + f'{_SEAL}{digest(body)}"}}\n'.encode():
        raise corrupt(file, "it doesn't have the digest that it names")
    fields: dict[str, Any] = json.loads(content)
    if fields["format"] != FORMAT:
        raise ValueError(f"{file} has format {fields['format']}, this version knows {FORMAT}: use a newer ciuic_dist")
    return fields
