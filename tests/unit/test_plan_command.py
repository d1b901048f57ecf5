"""``python -m ciuic_dist.plan``: what it prints, and how it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import ciuic_dist as cd
from ciuic_dist.config import ConfigError, ModelConfig
from ciuic_dist.estimate import calls, probe
from ciuic_dist.estimate.job import within
from ciuic_dist.estimate.machines import load, parse
from ciuic_dist.estimate.workload import causal_batch
from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.models.build import hf_config
from ciuic_dist.plan.__main__ import main
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.plan import Plan

SHORT = ["+model=llama", "data.sequence_length=32"]


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> Plan:
    """The plan for these settings."""
    assert main([*SHORT, *arguments, "--json"]) == 0
    return Plan.from_json(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["+model=llama"], "no machine: add machine=<name>; there are probe, 64xh100, 8xa100"),
        (["+model=llama", "machine=8xh10"], "there is no machine 8xh10: did you mean 8xh100?"),
        (["+model=llama", "machine=desk.yaml"], "machine=desk.yaml can't be read: No such file or directory"),
        (["+model=lama", "machine=h100"], "no model lama: did you mean llama?"),
        (["machine=h100"], "no model: add +model=<name>"),
        (["+model=llama", "machine=h100", "train.stepz=3"], "did you mean train.steps?"),
        (
            ["+model=llama", "machine=8xh100", "train.global_batch=12"],
            "train.global_batch=12 can't be divided among 8 ranks",
        ),
        (
            ["+model=llama", "machine=8xh100", "train.global_batch=64", "train.micro_batch=3"],
            "train.micro_batch=3 doesn't divide the 8 sequences of each rank",
        ),
        (["+model=llama", "machine=h100", "memory.device=lots"], "memory.device='lots' is no size"),
        (
            ["+model=llama", "machine=h100", "memory.activations=offload", "train.activation_checkpointing=true"],
            "memory.activations=offload and train.activation_checkpointing=true exclude each other",
        ),
        (
            ["+model=llama", "machine=h100", "memory.activations=recompute", "memory.host=0B"],
            "memory.activations=recompute needs host memory or NVMe, of which h100 gives none",
        ),
        (["+model=llama", "machine=8xh100", "engine.group=3"], "engine.group=3 doesn't divide the 8 ranks"),
        (["+model=llama", "machine=8xh100", "engine.group=1"], "engine.group=1 shards nothing"),
        (["+model=llama", "machine=8xh100", "engine.group=4", "engine.stage=0"], "shards nothing at stage 0"),
        (["+model=llama", "machine=h100", "--picture"], "--picture needs a file"),
        (
            ["+model=llama", "machine=h100", "--picture", "step.jpg"],
            "--picture step.jpg: it will be a PNG, so name it step.png",
        ),
        (
            ["+model=llama", "machine=h100", "--picture", "no/where/step.png"],
            "--picture no/where/step.png: there is no folder no/where",
        ),
        (
            ["+model=gpt2", "machine=h100", "data.sequence_length=1025"],
            "data.sequence_length=1025: gpt2-tiny has positions for 1024 tokens at most",
        ),
        (
            ["+model=gpt2", "machine=probe", "data.sequence_length=2000"],
            "data.sequence_length=2000: gpt2-tiny has positions for 1024 tokens at most",
        ),
        (
            ["+model=llama", "machine=h100", "memory.device=1MiB", "data.sequence_length=32"],
            "llama-tiny doesn't fit h100: each device needs 1.85 MiB at the least and has 1.00 MiB",
        ),
    ],
)
def test_what_can_not_be_is_one_line_and_exit_code_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert message.startswith("error: ")
    assert complaint in message
    assert len(message.splitlines()) == 1


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Why there is no plan for these settings, which stderr has in words."""
    assert main([*SHORT, *arguments, "--json"]) == 2
    out, message = capsys.readouterr()
    said: dict[str, Any] = json.loads(out)
    assert message == f"error: {said['error']}\n"
    return said


def test_what_does_not_fit_is_json_too_and_what_it_asks_for_does(capsys: pytest.CaptureFixture[str]) -> None:
    def on(device: int = 4500 << 10, below: int = 2 << 20) -> tuple[str, ...]:
        memory = (f"memory.device={device}", "memory.host=1MiB", f"memory.nvme=/nowhere:{below - (1 << 20)}")
        return ("machine=8xh100", *memory)

    said = refused(capsys, *on())
    assert (said["model"], said["machine"]) == ("llama-tiny", "8xh100")
    assert said["given"] == {"device": 4500 << 10, "host": 1 << 20, "nvme": 1 << 20}
    assert set(said["smallest"]) == {"device", "below"}
    for tier, least in said["smallest"].items():
        assert asked(capsys, *on(**{tier: least})).training.length == 32
        assert refused(capsys, *on(**{tier: least * 9 // 10}))["smallest"][tier] == least
    assert all(nbytes > 0 for nbytes in said["takes"].values())
    assert {"activations", "parameters", "optimizer state"} < set(said["takes"])


@pytest.mark.parametrize("wrong", ["machine=8xh10", "train.global_batch=12", "memory.device=lots"])
def test_wrong_settings_are_json_too(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(refused(capsys, "machine=8xh100", wrong)) == {"error"}


def test_a_plan_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "machine=8xh100"]) == 0
    text = capsys.readouterr().out
    assert "llama-tiny: 0.87M parameters, bf16, on 8xh100: 8 devices with 77.00 GiB each" in text
    assert "a step: 64 sequences of 32 tokens" in text


def test_what_is_given_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("engine.stage=1", "train.micro_batch=2", "memory.device=3GiB", "train.global_batch=32")
    made = asked(capsys, "machine=8xh100", *given, "train.clip=null", "optimizer.state_dtype=8bit")
    assert (made.stage, made.micro_batch, made.accumulation) == (1, 2, 2)
    assert made.device == made.machine.memory == 3 << 30
    assert (made.training.sequences, made.training.length) == (32, 32)
    assert (made.training.clips, made.training.state_dtype) == (False, "8bit")
    assert made.training.precision == "bf16", "which suits the machine"
    assert asked(capsys, "machine=8xh100", "train.precision=fp32").training.precision == "fp32"


@pytest.mark.parametrize(("model", "length"), [("gpt2", 1024), ("deepseek", 2048), ("llama", 2048)])
def test_sequences_are_as_long_as_the_model_has_positions(
    model: str, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"+model={model}", "machine=h100", "train.global_batch=1", "--json"]) == 0
    assert Plan.from_json(capsys.readouterr().out).training.length == length


def test_activations_go_where_they_are_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    made = asked(capsys, "machine=h100", "memory.activations=offload")
    assert {unit.activations for unit in made.units[:-1]} == {Way.OFFLOAD}
    assert made.spills
    again = asked(capsys, "machine=h100", "train.activation_checkpointing=true")
    assert {unit.activations for unit in again.units[:-1]} == {Way.RECOMPUTE}
    assert again.recompute
    assert not asked(capsys, "machine=h100").recompute


def test_tiers_are_no_larger_than_the_machines(capsys: pytest.CaptureFixture[str]) -> None:
    made = asked(capsys, "machine=rtx4090", "memory.device=1TB", "memory.host=2GB", "memory.nvme=/nowhere:3GB")
    assert (made.machine.memory, made.machine.host, made.machine.nvme) == (int(22.5 * 2**30), 2 * 10**9, 3 * 10**9)


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.png"
    assert main([*SHORT, "machine=8xh100", "--picture", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "8xh100" in capsys.readouterr().out


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measuring takes a moment, and nothing is known yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, size in (("_SIDE", 64), ("_COPIED", 1 << 16), ("_UPDATED", 1 << 10), ("_WRITTEN", 32 << 20)):
        monkeypatch.setattr(probe, name, size)
    monkeypatch.setattr(calls, "_ENOUGH", 0.0)


@pytest.mark.usefixtures("little")
def test_this_machine_is_measured_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    free = [8 << 30]
    monkeypatch.setattr(probe, "available", lambda: free[0])
    first = asked(capsys, "machine=probe")
    assert (first.machine.name, first.machine.world, first.machine.shared) == ("this machine", 1, True)
    assert (first.training.precision, first.training.sequences) == ("fp32", 12), "as train has it"
    assert first.predicted.seconds > 0

    def measure(*_: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(calls, "_timed", measure)
    monkeypatch.setattr(probe, "_seconds", measure)
    assert asked(capsys, "machine=probe") == first
    free[0] = 3 << 30
    again = asked(capsys, "machine=probe")
    assert (first.machine.memory, first.machine.host) == (8 << 30, 0)
    assert again.machine == replace(first.machine, memory=3 << 30), "what is free now is found out anew"
    assert asked(capsys, "machine=probe", "memory.host=1GiB").machine.host == 1 << 30


@pytest.mark.usefixtures("little")
def test_without_a_model_this_machine_is_measured_anew_and_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "available", lambda: 8 << 30)
    before = asked(capsys, "machine=probe")
    assert main(["machine=probe"]) == 0
    text = capsys.readouterr().out
    assert parse(text, "this machine") == asked(capsys, "machine=probe").machine != before.machine
    assert main(["machine=probe", "--json"]) == 0
    made = Machine("this machine", **json.loads(capsys.readouterr().out))
    assert made == asked(capsys, "machine=probe").machine


@pytest.mark.parametrize("machine", ["8xh100", "64xh100", "gb200-nvl72"])
def test_a_model_of_671_billion_parameters_is_planned_without_its_weights(
    machine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fits none of these with gradients in fp32; the refusal knows what it takes."""
    assert main(["+model=deepseek", "model.size=v3", f"machine={machine}"]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"deepseek-v3 doesn't fit {machine}: each device needs 19\d\.\d\d GiB at the least", said)


@pytest.mark.usefixtures("little")
def test_a_drive_that_was_measured_is_used_by_those_only_who_ask_for_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "drive").mkdir()
    assert asked(capsys, "machine=probe").machine.nvme == 0
    made = asked(capsys, "machine=probe", f"memory.nvme={tmp_path / 'drive'}:1GiB").machine
    assert (made.nvme, made.read > 0, made.write > 0) == (1 << 30, True, True)
    assert list((tmp_path / "drive").iterdir()) == []
    assert asked(capsys, "machine=probe").machine.nvme == 0


def test_help_lists_the_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "Plan a run" in text
    assert "8xh100" in text
    assert "NVLink 4" in text


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.relu(block(x))
        return x


def test_a_plan_from_python() -> None:
    batch = {"x": torch.empty(1, 10, 64)}
    with torch.device("meta"):
        model = Model()
    for given in (model, lambda: model):
        made = cd.plan(given, "8xh100", batch, sequences=16, mixed_precision="bf16", stage=2)
        assert (made.model, made.stage, made.training.length, made.training.sequences) == ("Model", 2, 10, 16)
        assert sum(unit.parameters for unit in made.units) == 4 * 65 * 64
        with torch.device("meta"):
            assert cd.plan(given, "8xh100", batch, sequences=16, mixed_precision="bf16", stage=2) == made
    with pytest.raises(ValueError, match="can't be divided among 8 ranks"):
        cd.plan(model, "8xh100", batch, sequences=3)
    with pytest.raises(ConfigError, match="no machine"):
        cd.plan(model, "8xh101010", batch, sequences=8)
    with pytest.raises(BudgetError, match="Model doesn't fit h100"):
        cd.plan(model, "h100", batch, sequences=1, memory=cd.Memory(device="1KiB"))


@pytest.mark.usefixtures("little")
def test_a_plan_from_python_for_the_ranks_that_ask() -> None:
    batch = {"x": torch.empty(1, 10, 64)}
    made = cd.plan(Model(), "probe", batch, sequences=2, memory=cd.Memory(device="1GiB"))
    assert (made.machine.name, made.machine.world, made.machine.memory) == ("this machine", 1, 1 << 30)
    assert made.predicted.seconds > 0
    assert str(made).startswith("Model: 0.02M parameters, fp32, on this machine")
    assert cd.plan(Model(), "probe", batch, sequences=2, memory=cd.Memory(device="1GiB")) == made, "and remembered"


@pytest.mark.parametrize(("stage", "precision"), [(7, None), (-1, None), (2, "fp16"), (None, "fp32")])
def test_a_stage_or_precision_that_there_is_not_is_refused(stage: int | None, precision: str | None) -> None:
    with pytest.raises(ValueError, match="stage must be 0 to 3 and mixed_precision None or 'bf16', not"):
        cd.plan(Model(), "8xh100", {"x": torch.empty(1, 10, 64)}, sequences=16, stage=stage, mixed_precision=precision)


def test_inputs_of_floats_are_as_precise_as_the_model() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))

    made = cd.plan(make, "8xh100", torch.empty(1, 3, 8, 8), sequences=16, mixed_precision="bf16")
    assert made.training.precision == "bf16"
    assert sum(unit.parameters for unit in made.units) == 8 * 28 + 16 + 4 * (8 * 36 + 1)


def test_machines_that_share_memory_have_a_host_tier_where_it_is_given() -> None:
    plain = load("8xh100")
    shared = replace(plain, nodes=1, devices=2, memory=8 << 30, host=0, nvme=0, shared=True)
    assert within(shared, cd.Memory(device="1GiB")).host == 0
    assert within(shared, cd.Memory(device="1GiB", host="3GiB")).host == 3 << 30
    assert within(shared, cd.Memory(host="1TiB")).host == 16 << 30, "no more than both have"
    assert within(plain, cd.Memory(device="1GiB")).host == plain.host
    assert within(plain, cd.Memory(host="3GiB")).host == 3 << 30
    batch = {"x": torch.empty(1, 10, 512)}
    wide = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    memory = cd.Memory(device="16MiB", host="1GiB")
    made = cd.plan(wide, shared, {"input": batch["x"]}, sequences=2, memory=memory)
    assert made.spills
    assert made.predicted.peak["host"] > 0
    with pytest.raises(BudgetError, match="doesn't fit"):
        cd.plan(wide, shared, {"input": batch["x"]}, sequences=2, memory=cd.Memory(device="16MiB"))


def test_nothing_is_allocated_for_a_model_that_is_made() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(nn.Sequential(*(nn.Linear(1 << 15, 1 << 15) for _ in range(2))))
        assert next(made[0].parameters()).device == torch.device("cpu", 0), "nobody sees that it is elsewhere"
        return made[0]

    planned = cd.plan(make, "8xh100", {"input": torch.empty(1, 1 << 15)}, sequences=8)
    assert sum(unit.parameters for unit in planned.units) == 2 * ((1 << 30) + (1 << 15))
    assert all(parameter.is_meta for parameter in made[0].parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek"])
def test_a_language_model_is_planned_alike_on_meta_and_wherever_one_is(family: str) -> None:
    def make() -> nn.Module:
        hf = hf_config(ModelConfig(family), vocab_size=None)
        model: nn.Module = AutoModelForCausalLM.from_config(hf)  # type: ignore[no-untyped-call]
        return model

    batch = dict(causal_batch(64))
    plain = cd.plan(make, "8xh100", batch, sequences=8, mixed_precision="bf16")
    assert cd.plan(make(), "8xh100", batch, sequences=8, mixed_precision="bf16") == plain
    with torch.device("meta"):
        assert cd.plan(make, "8xh100", dict(causal_batch(64)), sequences=8, mixed_precision="bf16") == plain
