"""Which trainings: models, tokens and budgets. Pure, but for asking a model's shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.measure.setting import Setting
from benchmarks.plan.cases import Case
from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build, hf_config

IN_MEMORY: Final = "in memory"
PEERS: Final = ("fsdp2", "deepspeed")
_GIB: Final = 1 << 30
_SPARE: Final = 4 << 30
_STATE: Final = 12.5  # bytes of a parameter in bf16 with its master and moments, and of pages that aren't full
_UNSPILLED: Final = 14  # the same with a gradient
_PEERS: Final = 20  # of a parameter on the host: fp32 and gradients, both rounded up as torch registers them, moments


@dataclass(frozen=True, slots=True)
class Trial:
    """`engine` trains `setting`; `device` and `host` are the budgets in bytes, None none. `problem`: why it can't."""

    name: str
    engine: str
    setting: Setting
    device: int | None = None
    host: int | None = None
    problem: str = ""

    @property
    def work(self) -> tuple[str, int]:
        """What trials have in common that can be compared: the blocks, and the tokens of a step."""
        return self.setting.size, self.setting.tokens


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the device and of the host's memory that a training may use."""

    device: int
    host: int


def trials(room: Room) -> Iterator[Trial]:
    """The most telling first: there may be no time for all."""
    for batch in (2, 4, 1):
        for size in ("7b", "13b", "1b"):
            setting = _setting(size, batch)
            yield in_memory(setting, room)
            yield budgeted(setting, room, room.device, "all of the device")
        if batch == 2:
            yield from peers(_setting("1b", batch), room)
            yield from peers(_setting("7b", batch), room)
            yield from peers(_setting("13b", batch), room)
        if batch > 1:
            yield budgeted(_setting("7b", batch), room, min(room.device, 24 * _GIB), "24 GiB")


def tiny(room: Room, device: str) -> Iterator[Trial]:
    """The same of a model that a CPU trains in seconds."""
    setting = replace(_setting("tiny", 2, device), sequence=64, warmup=2, steps=2)
    yield in_memory(setting, room)
    yield Trial(_name(setting, "ours within 8 MiB"), "ours", setting, 8 << 20, 32 << 20)
    yield next(peers(setting, room))


def in_memory(setting: Setting, room: Room) -> Trial:
    """Without a budget, with as many layers as surely fit."""
    root, layer, layers = shape(setting)
    most = max(1, (room.device * 7 // 10 // _UNSPILLED - root) // layer)
    fits = most >= layers
    name = _name(setting, IN_MEMORY if fits else f"{most} of {layers} layers {IN_MEMORY}")
    return Trial(name, "ours", setting if fits else replace(setting, layers=most))


def budgeted(setting: Setting, room: Room, device: int, what: str) -> Trial:
    """Within ``device`` bytes, and as much of the host's as the rest takes."""
    state = int(_STATE * _parameters(setting))
    host = min(max(state - device * 2 // 3, 0) + _SPARE, room.host)
    return Trial(_name(setting, f"ours within {what}"), "ours", setting, device, host)


def peers(setting: Setting, room: Room) -> Iterator[Trial]:
    """Other engines, whose parameters and state or state alone lie on the host."""
    needs = _PEERS * _parameters(setting)
    problem = "" if needs <= room.host else f"not run: takes some {needs >> 30} GiB of the host, of {room.host >> 30}"
    for engine in PEERS:
        yield Trial(_name(setting, f"{engine} with CPU offload"), engine, setting, problem=problem)


def shape(setting: Setting) -> tuple[int, int, int]:
    """Parameters beside the layers, of a layer, and how many layers."""
    family, size, overrides = setting.model_settings()
    config = ModelConfig(family, size, overrides=overrides)
    model = build(replace(config, overrides=overrides | {"num_hidden_layers": 1}), vocab_size=None, seed=0)
    layer = sum(parameter.numel() for parameter in model.get_submodule("model.layers").parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - layer, layer, int(hf_config(config, vocab_size=None).num_hidden_layers)


def _parameters(setting: Setting) -> int:
    root, layer, layers = shape(setting)
    return root + layer * layers


def _name(setting: Setting, what: str) -> str:
    return f"{setting.model} {setting.size}, {setting.tokens} tokens, {what}"


def _setting(size: str, batch: int, device: str = "cuda") -> Setting:
    return Setting(
        model="llama",
        size=size,
        dtype="bf16",
        device=device,
        ranks=1,
        hosts="1",
        batch=batch,
        sequence=4096,
        steps=3,
        warmup=3,
        checkpointing=True,
    )


_3B: Final = {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128}
_MEDIUM: Final = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
_EXPERTS: Final = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "intermediate_size": 2816,
    "moe_intermediate_size": 512,
    "n_routed_experts": 16,
}

PLANS: Final = (
    Case("llama 1b, bf16", "llama", "1b", 1, 0, 4, 2048, precision="bf16"),
    Case("llama 3b, bf16, recomputed", "llama", "1b", 1, 0, 2, 2048, _3B, precision="bf16", checkpointing=True),
    Case("gpt2 medium, fp32", "gpt2", "small", 1, 0, 8, 1024, _MEDIUM),
    Case("qwen3 0.6b, bf16, not clipped", "qwen3", "0.6b", 1, 0, 4, 2048, precision="bf16", clip=None),
    Case("deepseek 200m with experts, bf16", "deepseek", "tiny", 1, 0, 8, 1024, _EXPERTS, precision="bf16"),
    Case(
        "llama 1b, bf16, recomputed, within 12 GiB",
        "llama",
        "1b",
        1,
        0,
        2,
        2048,
        precision="bf16",
        clip=None,
        checkpointing=True,
        device=12 << 30,
        host=16 << 30,
    ),
)
TINY_PLANS: Final = (
    Case("llama tiny", "llama", "tiny", 1, 0, 2, 64),
    Case("llama tiny, within 12 MiB", "llama", "tiny", 1, 0, 2, 64, clip=None, device=12 << 20, host=32 << 20),
)
