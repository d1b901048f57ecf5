"""Whatever happens to a checkpoint's files, what is loaded is what was saved, or an error names the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ciuic_dist as cd
from ciuic_dist.checkpoint.errors import CorruptCheckpoint
from ciuic_dist.checkpoint.pieces import BoxedPiece
from ciuic_dist.optim.paged import PagedOptimizer

KINDS = ["manifest.json", "rank-00000.index", "rank-00000.pages"]


@dataclass
class Stored:
    """A checkpoint, and a model and an optimizer to load it into."""

    path: Path
    model: nn.Module
    optimizer: PagedOptimizer

    def load(self, path: Path) -> None:
        """Into the same ones again and again."""
        cd.load(path, model=self.model, optimizer=self.optimizer)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    model = cd.shard(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)))
    optimizer = cd.AdamW(model.parameters())
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    path = tmp_path_factory.mktemp("stored") / "checkpoint"
    cd.save(path, model=model, optimizer=optimizer, step=1)
    assert sorted(file.name for file in path.iterdir()) == KINDS
    return Stored(path, model, optimizer)


def refused(stored: Stored, kind: str, damage: Callable[[Path], object]) -> str:
    """What a load says when ``damage`` was done to a file of a copy."""
    copy = stored.path.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(stored.path, copy)
    damage(copy / kind)
    with pytest.raises(CorruptCheckpoint) as caught:
        stored.load(copy)
    return str(caught.value)


@settings(max_examples=150)
@given(kind=st.sampled_from(KINDS), at=st.integers(0), bit=st.integers(0, 7))
def test_a_bit_flipped_anywhere_is_found(stored: Stored, kind: str, at: int, bit: int) -> None:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[at % len(content)] ^= 1 << bit
        file.write_bytes(content)

    assert f"copy/{kind}: " in refused(stored, kind, flip)


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), at=st.integers(0))
def test_a_file_cut_off_anywhere_is_found(stored: Stored, kind: str, at: int) -> None:
    def cut(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: at % len(content)])

    assert f"copy/{kind}: " in refused(stored, kind, cut)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone_or_grew_is_found(stored: Stored, kind: str) -> None:
    assert f"copy/{kind}: it is gone" in refused(stored, kind, Path.unlink)
    assert f"copy/{kind}: " in refused(stored, kind, lambda file: file.write_bytes(file.read_bytes() + b"\n"))


def test_a_file_of_another_checkpoint_is_found(stored: Stored, tmp_path: Path) -> None:
    stored.load(stored.path)
    other = tmp_path / "other"
    cd.save(other, model=stored.model, optimizer=stored.optimizer, step=2)
    for kind in KINDS[1:]:
        assert f"copy/{kind}: " in refused(stored, kind, lambda file: shutil.copy(other / file.name, file))


def test_a_damaged_index_or_manifest_changes_nothing(stored: Stored) -> None:
    stored.load(stored.path)
    for kind in KINDS[:2]:
        refused(stored, kind, lambda file: file.write_bytes(file.read_bytes()[:-3]))
        stored.model(torch.randn(4, 3))


def test_a_checkpoint_that_lacks_a_part_of_a_tensor_is_refused(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.load(stored.path)
    boxes = BoxedPiece.boxes
    monkeypatch.setattr(BoxedPiece, "boxes", lambda piece: [(at, values[1:]) for at, values in boxes(piece)])
    cd.save(tmp_path / "c", model=stored.model)
    with pytest.raises(CorruptCheckpoint, match=r"it lacks 3 elements of model\.0\.weight"):
        cd.load(tmp_path / "c", model=stored.model)
