"""What was measured of this host, written down and read again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ciuic_dist.estimate.cache import Cache
from ciuic_dist.planning.machine import Machine

HERE = Machine("this machine", 1, 2, 1 << 30, 1e11, 5e10, 1e10, 1e-6, shared=True)


def test_what_is_kept_is_there_for_the_next(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new")
    assert (cache.machine, cache.operators) == (None, {})
    cache.keep(HERE, {"aten.mm": 0.25})
    for found in (cache, Cache(tmp_path / "new")):
        assert (found.machine, found.operators) == (HERE, {"aten.mm": 0.25})
    assert [path.name.partition("-")[0] for path in (tmp_path / "new").iterdir()] == ["machine"]


def test_it_lies_where_the_user_keeps_such_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Cache().keep(HERE, {})
    assert len(list((tmp_path / "ciuic_dist").iterdir())) == 1
    assert Cache().machine == HERE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"machine"',
        json.dumps({"machine": {"name": "of another version"}}),
        json.dumps({"machine": asdict(HERE) | {"gills": 2}}),
        json.dumps({"machine": asdict(HERE), "operators": [1]}),
        json.dumps({"machine": None}),
    ],
)
def test_a_file_that_is_broken_or_of_another_version_is_ignored(text: str, tmp_path: Path) -> None:
    Cache(tmp_path).keep(HERE, {"aten.mm": 1.0})
    [path] = tmp_path.iterdir()
    path.write_text(text)
    again = Cache(tmp_path)
    assert (again.machine, again.operators) == (None, {})
    again.keep(HERE, {})
    assert Cache(tmp_path).machine == HERE


def test_a_folder_that_can_not_be_written_to_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file")
    cache.keep(HERE, {"aten.mm": 1.0})
    assert "isn't kept: " in capsys.readouterr().err
    assert (cache.machine, cache.operators) == (HERE, {"aten.mm": 1.0})


def test_other_threads_have_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(tmp_path).keep(HERE, {})
    changed: Any = 1000
    monkeypatch.setattr("torch.get_num_threads", lambda: changed)
    assert Cache(tmp_path).machine is None
