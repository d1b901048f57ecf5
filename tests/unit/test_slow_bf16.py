"""bf16 on a processor that is slow at it is said once, by rank 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ciuic_dist.config import TrainConfig
from ciuic_dist.loop import precision
from ciuic_dist.loop.precision import warn_of_slow_bf16
from ciuic_dist.train import main
from tests.dist.train_jobs import TINY

BF16 = TrainConfig(precision="bf16")


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, fp32=1e11, bf16=1e9)


def rates(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> None:
    found = {torch.float32: fp32, torch.bfloat16: bf16}
    monkeypatch.setattr(precision, "matrix_rate", lambda dtype, *_: found[dtype])


def said(capsys: pytest.CaptureFixture[str], train: TrainConfig = BF16) -> str:
    warn_of_slow_bf16(train)
    return capsys.readouterr().err


def test_a_run_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "train.precision=bf16", "train.steps=1"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("warning: this processor multiplies matrices of bf16 100 times slower than those of fp32") == 1


def test_what_is_quick_enough_is_not_worth_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates(monkeypatch, fp32=1e11, bf16=3e10)
    assert said(capsys) == ""


def test_fp32_other_ranks_and_accelerators_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys) != ""
    assert said(capsys, TrainConfig(precision="fp32")) == ""
    with monkeypatch.context() as patch:
        patch.setattr(precision, "rank", lambda: 1)
        assert said(capsys) == ""
    monkeypatch.setattr(precision, "device", lambda: torch.device("cuda"))
    assert said(capsys) == ""
