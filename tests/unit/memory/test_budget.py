"""Budgets as users write them."""

from __future__ import annotations

import os
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.memory.budget import BudgetError, Budgets, Memory, parse_size
from ciuic_dist.monitor.units import size_text
from ciuic_dist.planning.activations import Way

UNITS = {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


@given(st.integers(0, 10**14), st.integers(1, 10**7))
def test_what_a_message_asks_for_is_enough_when_it_is_typed(there: int, lacking: int) -> None:
    needed = there + lacking
    asked, had = (parse_size(text, "key") for text in (size_text(needed, ceil), size_text(there, floor)))
    assert had <= there < needed <= asked <= max(1.01 * needed, needed + 11)
    assert parse_size(size_text(asked, floor), "key") == asked, "what was typed is what is shown"


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " ", "  "]), st.booleans())
def test_a_number_and_a_unit(number: int, unit: str, gap: str, lower: bool) -> None:
    text = f" {number}{gap}{unit.lower() if lower else unit}"
    assert parse_size(text, "key") == number * UNITS[unit]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        (0, 0),
        ("1.5GB", 1_500_000_000),
        ("0.5 GiB", 2**29),
        ("0.1KB", 100),
        ("0.3KiB", 308),
        ("2.01MB", 2_010_000),  # as a float it is less
    ],
)
def test_other_ways_to_write_a_size(text: str | int, size: int) -> None:
    assert parse_size(text, "key") == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "-1",
        "-1GiB",
        -1,
        "1.5",
        "2G",
        "1,5GB",
        "1e9",
        "1_000",
        "2 Gi B",
        "٣GiB",
        "inf",
        "nan",
        1e9,
        True,
        None,
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(BudgetError, match=r"^memory\.host=.* such as 20GiB") as error:
        parse_size(text, "memory.host")
    assert repr(text) in str(error.value)


def test_each_rank_gets_its_part(tmp_path: Path) -> None:
    memory = Memory(device="1GiB", host="10GB", nvme=f"{tmp_path}:100GB")
    assert memory.resolve(ranks_on_host=3) == Budgets(
        device=2**30, host=3_333_333_333, nvme=33_333_333_333, folder=tmp_path
    )


def test_no_budget_stays_none() -> None:
    assert Memory().resolve(ranks_on_host=2) == Budgets(device=None, host=None, nvme=None, folder=None)


def test_what_becomes_of_activations() -> None:
    assert Memory(device=1).resolve(1).activations is None
    assert Memory(device=1, activations="offload").resolve(1).activations is Way.OFFLOAD
    with pytest.raises(BudgetError, match=r"memory\.activations='spill' must be one of auto, keep, offload, recompute"):
        Memory(device=1, activations="spill").resolve(1)
    with pytest.raises(BudgetError, match=r"memory\.activations=keep needs a budget: give memory\.device"):
        Memory(activations="keep").resolve(1)


def test_a_folder_may_have_colons_and_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Memory(nvme="~/a:b:4096").resolve(1) == Budgets(nvme=4096, folder=tmp_path / "a:b")


@pytest.mark.parametrize("text", ["", "/scratch", "/scratch:", ":5GiB", "5GiB", 5])
def test_nvme_needs_a_folder_and_a_size(text: Any) -> None:
    with pytest.raises(BudgetError, match="write /folder:500GiB"):
        Memory(nvme=text).resolve(1)


def test_nvme_needs_a_size_that_is_one(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"memory\.nvme='many' is no size"):
        Memory(nvme=f"{tmp_path}:many").resolve(1)


def test_nvme_needs_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(BudgetError, match=f"no folder {tmp_path}/{name}"):
            Memory(nvme=f"{tmp_path}/{name}:1GiB").resolve(1)


def test_nvme_needs_a_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the mode of a folder stops no root user
    with pytest.raises(BudgetError, match="can't be written to"):
        Memory(nvme=f"{tmp_path}:1GiB").resolve(1)
