"""Checkpoints are compressed where spare cores outrun the drive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ciuic_dist.compress.worth import CodecRates
from ciuic_dist.estimate import compression
from ciuic_dist.estimate.drive import DriveRates


@pytest.mark.parametrize(("cores", "drive", "expected"), [(2, 1e9, False), (5, 1e9, True), (5, 9e9, False)])
def test_it_pays_where_spare_cores_outrun_the_drive(
    cores: int, drive: float, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_spare_cores", lambda: cores)
    monkeypatch.setattr(compression, "measure_codec", lambda _: CodecRates(encode=0.4e9, decode=0.4e9))
    monkeypatch.setattr(compression, "measure_drive", lambda *_: DriveRates(drive, drive, drive, 0.0))
    assert compression.pays(tmp_path) is expected


def test_nothing_is_measured_where_all_cores_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(compression, "measure_drive", None)
    assert not compression.pays(tmp_path)


def test_a_real_drive_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_spare_cores", lambda: 1 << 20)  # nothing is quicker
    assert compression.pays(tmp_path)
    assert not any(tmp_path.iterdir())
