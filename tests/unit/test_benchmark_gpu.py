"""Which trainings the GPU's benchmark chooses, and what it makes of their figures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.gpu import report
from benchmarks.gpu.trials import IN_MEMORY, Room, Trial, budgeted, in_memory, peers, shape, tiny
from benchmarks.measure.drawn import Drawn
from benchmarks.measure.setting import Setting
from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import defer, materialize

SETTING = Setting("llama", "tiny", "bf16", "cpu", 1, "1", batch=2, sequence=64, steps=2, warmup=2)
ROOT, LAYER, LAYERS = 2 * 256 * 128 + 128, 4 * 128 * 128 + 3 * 128 * 352 + 2 * 128, 4


def test_shape_is_that_of_the_model() -> None:
    assert shape(SETTING) == (ROOT, LAYER, LAYERS)


def test_in_memory_has_as_many_layers_as_fit() -> None:
    for layers in (1, 3):
        device = (ROOT + LAYER * layers) * 14 * 10 // 7 + LAYER
        trial = in_memory(SETTING, Room(device, 0))
        assert trial.setting.layers == layers
        assert trial.name.endswith(f"{layers} of 4 layers {IN_MEMORY}")
    assert in_memory(SETTING, Room(1 << 30, 0)).setting == SETTING


def test_what_the_device_has_no_room_for_goes_to_the_host_as_far_as_that_goes() -> None:
    room = Room(1 << 20, 8 << 30)
    some, all_of_it = budgeted(SETTING, room, 1 << 20, "1 MiB").host, budgeted(SETTING, room, 1 << 30, "1 GiB").host
    assert some is not None
    assert all_of_it is not None
    assert some > all_of_it
    assert budgeted(SETTING, replace(room, host=5), 1 << 20, "1 MiB").host == 5


def test_peers_that_the_host_has_no_room_for_are_not_tried() -> None:
    assert all(trial.problem for trial in peers(SETTING, Room(1 << 30, 1 << 20)))
    assert not any(trial.problem for trial in peers(SETTING, Room(1 << 30, 1 << 30)))


def measured(seconds: float, reserved: list[int]) -> dict[str, Any]:
    return {
        "parameters": 10,
        "work": {"flops": 4e12, "recomputed": 1e12},
        "step_seconds": [9.0, 9.0, seconds, seconds],
        "reserved": reserved,
        "losses": [1.0],
        "allocated": 0,
        "tiers": {"device": {"peak": 3e9, "budget": 4e9}},
        "moved": {"device->host": 2e9, "host->device": 4e9},
        "stall_seconds": 0.5,
        "preparing": 1.0,
    }


def test_figures_are_of_the_timed_steps() -> None:
    found = report.figures(Trial("one", "ours", SETTING), measured(2.0, [5, 7, 7, 8]))
    assert (found["seconds"], found["flops"], found["all_flops"]) == (2.0, 2e12, 2.5e12)
    assert (found["grown_after_one"], found["grown"]) == (3, 1)
    assert report.figures(Trial("one", "ours", SETTING), measured(2.0, [5, 7, 6, 7]))["grown"] == 0


def test_speed_is_compared_with_that_in_memory_at_as_many_tokens() -> None:
    memory = Trial(f"1 of 4 layers {IN_MEMORY}", "ours", replace(SETTING, layers=1))
    other = Trial("other tokens", "ours", replace(SETTING, batch=4))
    done = [
        (memory, measured(1.0, [0] * 4), ""),
        (Trial("spilled", "ours", SETTING), measured(2.0, [0] * 4), ""),
        (other, measured(2.0, [0] * 4), ""),
        (Trial("lost", "fsdp2", SETTING), {}, "trace\nOSError: a | b"),
    ]
    rows = [line.split(" | ") for line in report.training(done).splitlines()[2:6]]
    assert [row[6] for row in rows] == ["100.0%", "50.0%", "", ""]
    assert rows[1][7] == "3.00 / 4.00"
    assert rows[1][13:16] == ["2.00", "1.00", "0.250"]
    assert rows[3][0] == "| lost: failed: OSError: a / b"


def test_tiny_is_what_the_device_option_says() -> None:
    assert {trial.setting.device for trial in tiny(Room(1 << 30, 1 << 30), "cuda")} == {"cuda"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "deepseek"])
def test_drawn_values_train(family: str) -> None:
    model = build(ModelConfig(family, "tiny"), vocab_size=None, seed=0)
    exact = dict(materialize(build(ModelConfig(family, "tiny"), vocab_size=None, seed=0)).named_buffers())
    materialize(defer(model, Drawn(model, torch.device("cpu"))))
    assert all(torch.equal(buffer, exact[name]) for name, buffer in model.named_buffers())
    ids = torch.zeros(1, 16, dtype=torch.int64)
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(math.log(256), rel=0.2)
