"""Pages and what says where they lie come back as they were written, or not at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ciuic_dist.checkpoint import pages as pages_module
from ciuic_dist.checkpoint.errors import CorruptCheckpoint
from ciuic_dist.checkpoint.filling import fill
from ciuic_dist.checkpoint.manifest import (
    Entry,
    Manifest,
    RankFiles,
    TensorBox,
    index_from_bytes,
    index_to_bytes,
    manifest_from_bytes,
    manifest_to_bytes,
    packages,
)
from ciuic_dist.checkpoint.page_files import PageFiles
from ciuic_dist.checkpoint.pages import Page, PageFileWriter
from ciuic_dist.checkpoint.writing import RankWriter

FILE = Path("a file")
SIZES = st.integers(0, 1 << 40)
PAGES = st.builds(Page, SIZES, SIZES, SIZES, st.just("raw"), st.text("0123456789abcdef", min_size=16, max_size=16))
LENGTHS = st.lists(SIZES, max_size=4).map(tuple)
BOXES = st.builds(TensorBox, st.sampled_from(["float32", "bfloat16"]), LENGTHS, LENGTHS, LENGTHS)
ENTRIES = st.lists(st.builds(Entry, st.text(), st.none() | BOXES, st.lists(PAGES, max_size=3).map(tuple)), max_size=4)
RANKS = st.lists(st.builds(RankFiles, SIZES, SIZES, SIZES, st.text(max_size=4)), max_size=3).map(tuple)
PATHS = st.none() | st.dictionaries(st.text(), st.lists(st.text() | st.integers(0, 99), max_size=3).map(tuple))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that little has many."""
    monkeypatch.setattr(pages_module, "PAGE_BYTES", 16)


@given(st.lists(st.binary(max_size=70), max_size=5), st.sampled_from([None, 1, 2, 4, 8]))
def test_content_comes_back_in_pages(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], itemsize: int | None
) -> None:
    path = tmp_path_factory.mktemp("pages") / "file"
    with PageFileWriter(path) as writer:
        written = [writer.append(memoryview(content), itemsize) for content in contents]
        writer.finish()
        assert writer.nbytes == path.stat().st_size
    files = PageFiles()
    for content, places in zip(contents, written, strict=True):
        assert all(0 < page.raw <= 16 for page in places)
        assert b"".join(bytes(files.read(path, page, "it")) for page in places) == content


@given(content=st.binary(min_size=1, max_size=40), at=st.integers(0), bit=st.integers(0, 7), cut=st.booleans())
def test_a_page_that_changed_is_named(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, bit: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("pages") / "file"
    with PageFileWriter(path) as writer:
        places = writer.append(memoryview(content))
        writer.finish()
    number, place = divmod(at % len(content), 16)
    damaged, byte = bytearray(path.read_bytes()), places[number].offset + place
    damaged[byte] ^= 1 << bit
    path.write_bytes(damaged[:byte] if cut else damaged)
    files = PageFiles()
    with pytest.raises(CorruptCheckpoint, match=str(path)):
        b"".join(bytes(files.read(path, page, "it")) for page in places)


@given(ENTRIES)
def test_an_index_comes_back(entries: list[Entry]) -> None:
    assert index_from_bytes(index_to_bytes(entries), FILE) == entries


@given(RANKS, PATHS)
def test_a_manifest_comes_back(files: tuple[RankFiles, ...], paths: dict[str, tuple[str | int, ...]] | None) -> None:
    manifest = Manifest(files, packages(), paths)
    assert manifest_from_bytes(manifest_to_bytes(manifest), FILE) == manifest


@given(ENTRIES, st.integers(0), st.integers(0, 7), st.booleans())
def test_an_index_that_changed_is_refused(entries: list[Entry], at: int, bit: int, cut: bool) -> None:
    content = bytearray(index_to_bytes(entries))
    content[at % len(content)] ^= 1 << bit
    with pytest.raises(CorruptCheckpoint, match="a file"):
        index_from_bytes(bytes(content[: at % len(content)] if cut else content), FILE)


def test_a_newer_format_is_not_called_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciuic_dist.checkpoint.manifest.FORMAT", 2)
    newer = index_to_bytes([])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2, this version knows 1: use a newer ciuic_dist") as caught:
        index_from_bytes(newer, FILE)
    assert not isinstance(caught.value, CorruptCheckpoint)


@st.composite
def tensors_with_a_part(draw: st.DrawFn) -> tuple[Tensor, list[slice]]:
    """A tensor of any dtype, and a box in it."""
    shape = draw(st.lists(st.integers(1, 6), max_size=3))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool]))
    values = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    ends = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape]
    return values, [slice(low, high) for low, high in ends]


@given(tensors_with_a_part())
def test_any_part_of_a_box_is_found(tmp_path_factory: pytest.TempPathFactory, case: tuple[Tensor, list[slice]]) -> None:
    values, part = case
    folder = tmp_path_factory.mktemp("box")
    with RankWriter(folder, 0) as writer:
        writer.tensor("it", values, values.shape, [0] * values.dim())
        files = writer.finish()
    entry = index_from_bytes((folder / files.index).read_bytes(), FILE)[0]
    expected = values[tuple(part)]
    found = torch.zeros_like(expected)
    fill(found, partial(PageFiles().read, folder / files.pages, what="it"), entry, [cut.start for cut in part])
    assert torch.equal(found, expected)
