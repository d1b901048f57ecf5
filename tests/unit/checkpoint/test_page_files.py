"""Reading ahead changes nothing but the time: what is asked for comes, whatever was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ciuic_dist.checkpoint import page_files
from ciuic_dist.checkpoint import pages as pages_module
from ciuic_dist.checkpoint.errors import CorruptCheckpoint
from ciuic_dist.checkpoint.page_files import PageFiles
from ciuic_dist.checkpoint.pages import Page, PageFileWriter
from ciuic_dist.memory.mapping import private

FILES, PAGES = 6, 9
NUMBERS = st.lists(st.tuples(st.integers(0, FILES - 1), st.integers(0, PAGES - 1)), max_size=30)
Place = tuple[Path, Page]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[list[Place]]:
    """Of each file its pages; the content of each says which it is."""
    folder = tmp_path_factory.mktemp("files")
    return [_file(folder / str(number), number) for number in range(FILES)]


def _file(path: Path, number: int) -> list[Place]:
    with pytest.MonkeyPatch.context() as small, PageFileWriter(path) as writer:
        small.setattr(pages_module, "PAGE_BYTES", 2)
        pages = writer.append(memoryview(b"".join(bytes((number, page)) for page in range(PAGES))))
        writer.finish()
    return [(path, page) for page in pages]


@given(expected=NUMBERS, asked=NUMBERS, more=NUMBERS, once=st.integers(1, 4))
def test_anything_may_be_asked_for(
    places: list[list[Place]],
    expected: list[tuple[int, int]],
    asked: list[tuple[int, int]],
    more: list[tuple[int, int]],
    once: int,
) -> None:
    files = PageFiles()
    for coming in (expected, more):
        files.expect(places[file][page] for file, page in coming)
        for number, (file, page) in enumerate((*asked, *coming)):
            content = files.read(*places[file][page], "it", once=number % once == 0)
            assert bytes(content) == bytes((file, page))


def test_the_next_two_are_on_their_way_and_none_is_read_twice(
    places: list[list[Place]], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Page] = []
    begin = PageFiles._begin

    def noted(files: PageFiles, path: Path, page: Page) -> None:
        begun.append(page)
        begin(files, path, page)

    monkeypatch.setattr(PageFiles, "_begin", noted)
    order = [place for place in places[0] for _ in range(3)]  # each has values of three tensors
    files = PageFiles()
    files.expect(order)
    for number, place in enumerate(order):
        files.read(*place, "it")
        assert begun == [page for _, page in places[0][: number // 3 + 3]]
    assert not files.expecting


def test_a_page_that_was_read_ahead_is_verified_when_it_is_asked_for(places: list[list[Place]], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    content = bytearray(places[0][0][0].read_bytes())
    content[places[0][1][1].offset] ^= 1
    damaged.write_bytes(content)
    pages = [page for _, page in places[0]]
    files = PageFiles()
    files.expect((damaged, page) for page in pages)
    assert bytes(files.read(damaged, pages[0], "it")) == b"\0\0"
    with pytest.raises(CorruptCheckpoint, match=f"the page of it at byte {pages[1].offset}"):
        files.read(damaged, pages[1], "it")
    assert not files.expecting
    assert bytes(files.read(damaged, pages[2], "it")) == b"\0\2"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the rooms that are made."""
    made: list[int] = []

    def noted(nbytes: int) -> Tensor:
        made.append(nbytes)
        return private(nbytes)

    monkeypatch.setattr(page_files, "private", noted)
    return made


def test_room_is_made_for_few(places: list[list[Place]], made: list[int]) -> None:
    files = PageFiles()
    order = [file[page] for page in range(PAGES) for file in places]
    for stop in (len(order), 1, 1, 1, len(order), 1, 1):
        files.expect(order)
        for number, place in enumerate(order[:stop]):
            files.read(*place, "it", once=number % 3 == 0)
    assert len(made) == 6 + 2  # kept, and on their way


def test_what_is_used_once_gives_its_room_to_the_next(places: list[list[Place]], made: list[int]) -> None:
    files = PageFiles()
    order = [place for file in places for place in file]
    files.expect(order)
    for place in order:
        files.read(*place, "it", once=True)
    assert len(made) == 1 + 2  # in use, and on their way
