"""Plans: what they say, and that they survive being written down."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings

from ciuic_dist.estimate.picture import draw
from ciuic_dist.estimate.planner import make_plan
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.monitor.units import size_text
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.choices import Limits
from ciuic_dist.planning.footprint import footprint
from ciuic_dist.planning.forecast import DoesNotFit
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.report import describe
from ciuic_dist.planning.search import search
from ciuic_dist.planning.training import Training
from ciuic_dist.sharding.planned import memory_of
from tests.damage import damages
from tests.unit.planning import jobs
from tests.unit.planning.jobs import KIB, MIB, kept, machine, per_sequence, stack

MODEL = stack([400_000] * 4, 10_000, seconds=1e-2, bytes_each=100_000)
TRAINING = Training(4, 128)
TIGHT = machine(12 * MIB, devices=2, host=1000 * MIB, link=1e8)


ENDS = (4 * (1 + 6) + 1) * (2 + 3 + 1) * (64 * KIB + 4 * 4096)
"""Of pages: a block is six flats of two pages of fp32 on both ranks, and a rest; parameters are on both ranks."""

FEW = Limits(stage=2, micro_batch=2, way=Way.KEEP)
"""Leaves two choices, so that their transfers are soon played."""


@cache
def planned(where: Machine = TIGHT, limits: Limits = FEW) -> Plan:
    return make_plan("model", per_sequence(MODEL), where, TRAINING, limits)


def test_a_plan_that_was_damaged_is_none(tmp_path: Path) -> None:
    made, refused = planned(), 0
    file = tmp_path / "plan.json"
    file.write_text(made.to_json())
    for content in damages(file, 1000):
        try:
            assert Plan.from_json(content.decode()) == made
        except (KeyError, TypeError, ValueError):
            refused += 1
    assert refused > 500


def test_a_run_keeps_its_way_unless_another_is_worth_the_change() -> None:
    best = planned(limits=Limits(stage=2))
    other = next(plan for plan in (planned(limits=Limits(2, 1, way)) for way in Way) if plan.choice != best.choice)
    again = make_plan("model", per_sequence(MODEL), TIGHT, TRAINING, Limits(stage=2), other.choice)
    quicker = other.predicted.seconds > 1.05 * best.predicted.seconds
    assert again.choice == (best.choice if quicker else other.choice)
    assert make_plan("model", per_sequence(MODEL), TIGHT, TRAINING, Limits(stage=2), best.choice).choice == best.choice
    nothing = replace(TIGHT, memory=1, host=0)
    with pytest.raises(BudgetError):
        make_plan("model", per_sequence(MODEL), nothing, TRAINING, None, best.choice)


def test_a_plan_prints_in_words() -> None:
    assert str(planned()) == describe(planned())


@settings(max_examples=8)
@given(jobs.jobs())
def test_a_plan_is_what_was_found_and_survives_json(job: tuple[Profile, Machine, Training]) -> None:
    profile, where, training = job
    profile_of = per_sequence(profile)
    try:
        found = search(profile_of, where, training)
    except DoesNotFit:
        with pytest.raises(BudgetError, match="doesn't fit drawn"):
            make_plan("model", profile_of, where, training)
        return
    made = make_plan("model", profile_of, where, training)
    assert made.choice == found.choice
    assert made.predicted.seconds == found.forecast.seconds
    again = Plan.from_json(made.to_json())
    assert again == made
    assert again.digest == made.digest
    assert again.choice == found.choice


@pytest.mark.parametrize(
    "limits",
    [
        Limits(stage=3),
        Limits(stage=3, micro_batch=1, way=Way.OFFLOAD),
        Limits(stage=3, way=Way.RECOMPUTE),
        Limits(recompute=True),
        Limits(stage=0),
    ],
)
def test_a_plan_of_what_was_asked_for_is_that_choice(limits: Limits) -> None:
    where = replace(TIGHT, memory=1000 * MIB)
    assert planned(where, limits).choice == search(per_sequence(MODEL), where, TRAINING, limits).choice


def test_plans_that_differ_have_other_digests() -> None:
    made = planned()
    assert len(made.digest) == 16
    assert made.digest == make_plan("model", per_sequence(MODEL), TIGHT, TRAINING, FEW).digest
    assert replace(made, stage=made.stage ^ 1).digest != made.digest
    assert replace(made, machine=replace(made.machine, memory=1)).digest != made.digest


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"machine": {}}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Plan.from_json(text)


def test_bytes_lie_where_the_forecast_has_them() -> None:
    made = planned()
    found = search(per_sequence(MODEL), TIGHT, TRAINING, FEW).forecast
    assert made.spills
    kinds = {"parameters": "parameters", "gradients": "gradients", "optimizer state": "state"}
    for kind, name in kinds.items():
        assert sum(made.residency.get(kind, {}).values()) == getattr(found.footprint, name)
        assert made.residency.get(kind, {}).get("host", 0) == getattr(found.spilled, name)
    assert sum(places.get("host", 0) for places in made.residency.values()) == made.predicted.peak["host"]
    assert made.host == 2 * (found.footprint.spillable + found.spilled.activations + ENDS), "room for all of it"
    assert made.residency["activations and buffers"] == {"device": found.footprint.pinned}


SAVING = stack([1000] * 6, 1000, seconds=1e-3, bytes_each=1_000_000)


def test_a_plan_may_recompute_a_part_on_the_device_alone() -> None:
    made = make_plan("saving", per_sequence(SAVING), machine(6 * MIB), Training(1, 8), Limits(micro_batch=1))
    ways = [unit.activations for unit in made.units]
    assert set(ways) == {Way.RECOMPUTE, Way.KEEP}
    assert (made.spills, made.recompute) == (True, False), "within a budget, not by the model's own means"
    assert (made.device, made.host, made.nvme) == (6 * MIB, 0, 0)
    assert Plan.from_json(made.to_json()).choice.divided
    memory = memory_of(made, None, 1)
    assert memory is not None
    assert (memory.device, memory.host, memory.nvme, memory.activations) == (6 * MIB, None, None, "auto")


@pytest.mark.parametrize("way", [Way.OFFLOAD, Way.RECOMPUTE])
def test_lower_tiers_have_room_for_all_activations_while_they_are_watched(way: Way) -> None:
    where = machine(6 * MIB, host=1000 * MIB)
    made = make_plan("saving", per_sequence(SAVING), where, Training(1, 8), Limits(way=way))
    needs = footprint(SAVING, made.training, made.choice, where, spills=True)
    assert made.host == needs.spillable + needs.ends + 6_000_000


def test_drives_hold_what_the_host_does_not() -> None:
    where = replace(TIGHT, host=4 * MIB, nvme=1000 * MIB, read=1e8, write=1e8)
    made = planned(where)
    assert made.predicted.peak["host"] == 2 * MIB
    assert sum(places.get("nvme", 0) for places in made.residency.values()) == made.predicted.peak["nvme"] > 0
    needs = search(per_sequence(MODEL), where, TRAINING, FEW).forecast.footprint
    assert (made.host, made.nvme) == (4 * MIB, 2 * (needs.spillable + ENDS) - 4 * MIB)
    assert planned(replace(where, host=1000 * MIB)).nvme == 0, "the host has room for all"


def test_advice_is_worth_it_and_the_best_comes_first() -> None:
    slow = replace(TIGHT, up=1e6, down=1e6)
    gains = [entry.gain for entry in planned(slow).advice]
    assert gains == sorted(gains, reverse=True)
    assert all(gain >= 0.01 for gain in gains)
    assert gains[0] > 0.5, "the link to the host is what it waits for"
    assert planned(replace(TIGHT, memory=1000 * MIB)).predicted.of_in_memory == 1.0


def test_state_in_8_bits_is_advised_where_it_moves_less() -> None:
    slow = replace(TIGHT, up=1e6, down=1e6)
    assert not any("8 bits" in entry.change for entry in planned(replace(TIGHT, memory=1000 * MIB)).advice)
    [gain] = [entry.gain for entry in planned(slow).advice if "8 bits" in entry.change]
    quantized = make_plan("small", per_sequence(MODEL), slow, replace(TRAINING, state_dtype="8bit"), FEW)
    assert gain == pytest.approx(planned(slow).predicted.seconds / quantized.predicted.seconds - 1, rel=0.01)
    for other in (quantized, planned(replace(slow, shared=True))):
        assert not any("8 bits" in entry.change for entry in other.advice)


@pytest.mark.parametrize(("mib", "words"), [(512, "512.00 MiB"), (1024, "1.00 GiB")])
def test_what_does_not_fit_says_how_much_would_do(mib: int, words: str) -> None:
    profile = stack([20_000_000] * 4, 10_000_000)
    with pytest.raises(BudgetError) as caught:
        make_plan("big", per_sequence(profile), machine(mib * MIB), TRAINING)
    text = str(caught.value)
    assert "big doesn't fit plain: each device needs 1." in text
    assert f"and has {words}; activations take 2.73 KiB of it" in text


def test_what_does_not_fit_below_says_so_too() -> None:
    profile = stack([20_000_000] * 4, 10_000_000)
    where = machine(800 * MIB, host=1 * MIB)
    needs = footprint(profile, TRAINING, kept(profile), where, spills=True)
    more = size_text(needs.least + needs.spillable - where.memory - 1 * MIB, ceil)
    text = rf"\. {re.escape(more)} more of each node's host memory or NVMe would do as well"
    with pytest.raises(BudgetError, match=text):
        make_plan("big", per_sequence(profile), where, TRAINING)
    with pytest.raises(BudgetError, match=r"what has to be below the 97\.65 GiB of each device finds no room there"):
        make_plan("big", per_sequence(profile), machine(100_000 * MIB, host=100), TRAINING, Limits(way=Way.OFFLOAD))


def test_the_report_has_the_numbers() -> None:
    made = planned(replace(TIGHT, up=1e6, down=1e6))
    text = describe(made)
    predicted = made.predicted
    for part in (
        "model: 1.61M parameters, bf16, on plain: 2 devices with 12.00 MiB each",
        "a step: 4 sequences of 128 tokens, clipped, fp32 optimizer state",
        f"stage              {made.stage}",
        f"micro-batch        {made.micro_batch}, {made.accumulation} a step on each rank",
        f"peak on host       {predicted.peak['host'] / 2**20:.2f} MiB of 500.00 MiB",
        f"{predicted.tokens_per_second:,.0f} tokens/s in all",
        f"of in-memory speed {predicted.of_in_memory:.0%}",
        f": {predicted.limit}",
        f"would help: {made.advice[0].change}: +{made.advice[0].gain:.0%}",
    ):
        assert part in text
    assert all(resource in text for resource in predicted.resources)
    assert all(kind in text for kind in made.residency)


def test_the_report_says_what_becomes_of_activations() -> None:
    made = planned(replace(TIGHT, memory=1000 * MIB))
    mixed = (Way.OFFLOAD, Way.OFFLOAD, Way.KEEP, Way.KEEP, Way.KEEP)
    units = tuple(replace(unit, activations=way) for unit, way in zip(made.units, mixed, strict=True))
    assert "activations        offload 2 units, then keep 2 units" in describe(replace(made, units=units))
    assert "activations        keep all" in describe(made)
    assert "stay gathered" not in describe(made)
    gathered = planned(replace(TIGHT, memory=1000 * MIB), Limits(stage=3))
    full = sum(unit.gathered for unit in gathered.units[:-1])
    assert f"stay gathered      {full} of 4 units" in describe(gathered)


def height(made: Plan, folder: Path) -> int:
    """Of its picture; that is a PNG, and all that is written."""
    pytest.importorskip("matplotlib")
    folder.mkdir()
    draw(made, per_sequence(MODEL)(made.micro_batch), folder / "step.png")
    assert [path.name for path in folder.iterdir()] == ["step.png"]
    start = (folder / "step.png").read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(start[20:])


def test_the_picture_has_a_part_for_each_tier_and_a_row_for_each_link(tmp_path: Path) -> None:
    large = replace(TIGHT, memory=1000 * MIB)
    within = planned(large, FEW)
    offloaded = planned(large, replace(FEW, way=Way.OFFLOAD))
    spilled = planned(limits=FEW)
    full = planned(replace(TIGHT, host=4 * MIB, nvme=1000 * MIB, read=1e8, write=1e8), FEW)
    assert [set(made.predicted.peak) for made in (within, offloaded, spilled, full)] == [
        {"device"},
        {"device", "host"},
        {"device", "host"},
        {"device", "host", "nvme"},
    ]
    made = (within, offloaded, spilled, full)
    heights = [height(made, tmp_path / str(index)) for index, made in enumerate(made)]
    assert heights == sorted(set(heights))


def test_the_json_is_plain() -> None:
    assert json.loads(planned().to_json())["training"]["sequences"] == 4
