"""Published trainings: models, machines, settings, figures and where they stand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from ciuic_dist.estimate.machines import load
from ciuic_dist.planning.machine import Machine

_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Case:
    """`tokens` a second of one device as published, None where only whether it fits is; `spills`: to the host."""

    name: str
    family: str
    fields: dict[str, Any]
    machine: Machine
    stage: int
    micro_batch: int
    accumulation: int
    length: int
    recompute: bool
    fits: bool
    tokens: float | None
    source: str
    spills: bool = False
    note: str = ""


def _llama(hidden: int, layers: int, inner: int, heads: int, groups: int, vocabulary: int = 32000) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
    }


def _gpt(hidden: int, layers: int, heads: int, length: int = 2048, vocabulary: int = 50432) -> dict[str, Any]:
    return {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": length, "vocab_size": vocabulary} | {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "activation_function": "gelu_pytorch_tanh",  # in one operator, as in the codes compared with
    }


def _alone(machine: Machine) -> Machine:
    """Without what it could spill to."""
    return replace(machine, host=0, nvme=0)


_A100: Final = _alone(load("8xa100"))
_H100: Final = _alone(load("8xh100"))
_V100: Final = replace(
    load("h100"),
    name="v100-32gb",
    memory=31 * _GIB,
    bf16=85e12,
    bandwidth=0.8e12,
    up=11e9,
    down=11e9,
    host=700 * _GIB,
)
_SMALL_V100: Final = _alone(_V100)


def _nodes(machine: Machine, nodes: int, network: float) -> Machine:
    return replace(machine, nodes=nodes, network=network)


_7B, _70B = _llama(4096, 32, 11008, 32, 32), _llama(8192, 80, 28672, 64, 8)
_34B = _llama(8192, 48, 22016, 64, 8)
_8B = _llama(4096, 32, 14336, 32, 8, 128256)
_TITAN_H100: Final = replace(_H100, name="8 h100 of 96 GB", memory=93 * _GIB, bandwidth=2.1e12, bf16=520e12)
_FMS, _FMS_OLD = (
    "foundation-model-stack/fms-fsdp README.md @ed74fd5",
    "foundation-model-stack/fms-fsdp README.md @5e522b4",
)
_MPT = "mosaicml/llm-foundry scripts/train/benchmarking/README.md @061f2c7"
_MEGATRON = "Narayanan et al., arXiv:2104.04473, table 2"
_STANDS_IN = "GPT-2's blocks stand in for MPT's of the same shape"
_IN_NODE = "sharded in each node, replicated among nodes"

CASES: Final = (
    Case("Llama 7B, A100", "llama", _7B, _A100, 3, 2, 1, 4096, False, True, 3700, _FMS_OLD, note=_IN_NODE),
    Case("Llama 7B, H100", "llama", _7B, _H100, 3, 2, 1, 4096, False, True, 7500, _FMS_OLD, note=_IN_NODE),
    Case("Llama 7B, A100, compiled", "llama", _7B, _A100, 3, 2, 1, 4096, False, True, 4550, _FMS, note=_IN_NODE),
    Case("Llama 7B, H100, compiled", "llama", _7B, _H100, 3, 2, 1, 4096, False, True, 9600, _FMS, note=_IN_NODE),
    Case("Llama 34B, 128 A100", "llama", _34B, _nodes(_A100, 16, 45e9), 3, 2, 1, 4096, True, True, 700, _FMS_OLD),
    Case("Llama 34B, 96 H100", "llama", _34B, _nodes(_H100, 12, 90e9), 3, 2, 1, 4096, True, True, 1550, _FMS_OLD),
    Case("Llama 70B, 128 A100", "llama", _70B, _nodes(_A100, 16, 45e9), 3, 2, 1, 4096, True, True, 370, _FMS_OLD),
    Case("Llama 70B, 96 H100", "llama", _70B, _nodes(_H100, 12, 90e9), 3, 2, 1, 4096, True, True, 800, _FMS_OLD),
    Case(
        "Llama 3.1 8B, 8 H100",
        "llama",
        _8B,
        _TITAN_H100,
        3,
        2,
        1,
        8192,
        True,
        True,
        5762,
        "pytorch/torchtitan benchmarks, Llama 3.1, December 2024",
        note="recomputes some operators only; ours all",
    ),
    Case("MPT 7B, 8 A100", "gpt2", _gpt(4096, 32, 32), _A100, 3, 6, 2, 2048, False, True, 4641, _MPT, note=_STANDS_IN),
    Case("MPT 7B, 8 H100", "gpt2", _gpt(4096, 32, 32), _H100, 3, 6, 1, 2048, False, True, 10643, _MPT, note=_STANDS_IN),
    Case("MPT 13B, 8 A100", "gpt2", _gpt(5120, 40, 40), _A100, 3, 2, 3, 2048, False, True, 2262, _MPT, note=_STANDS_IN),
    Case("MPT 13B, 8 H100", "gpt2", _gpt(5120, 40, 40), _H100, 3, 2, 1, 2048, False, True, 4792, _MPT, note=_STANDS_IN),
    Case("MPT 30B, 8 A100", "gpt2", _gpt(7168, 48, 56), _A100, 3, 3, 1, 2048, True, True, 916, _MPT, note=_STANDS_IN),
    Case("MPT 30B, 8 H100", "gpt2", _gpt(7168, 48, 56), _H100, 3, 3, 21, 2048, True, True, 2002, _MPT, note=_STANDS_IN),
    Case(
        "GPT-3 175B, 384 A100",
        "gpt2",
        _gpt(12288, 96, 96, vocabulary=51200),
        _nodes(_A100, 48, 170e9),
        3,
        4,
        1,
        2048,
        True,
        True,
        100.5,
        _MEGATRON,
    ),
    Case(
        "GPT-3 175B, 1536 A100",
        "gpt2",
        _gpt(12288, 96, 96, vocabulary=51200),
        _nodes(_A100, 192, 170e9),
        3,
        1,
        1,
        2048,
        True,
        True,
        30.5,
        _MEGATRON,
    ),
    Case(
        "GPT-2 1.4B, one V100 of 32 GB",
        "gpt2",
        _gpt(1536, 40, 16, 1024),
        _SMALL_V100,
        0,
        1,
        1,
        1024,
        True,
        True,
        None,
        "Ren et al., ZeRO-Offload, arXiv:2101.06840: the largest without offloading",
    ),
    Case(
        "GPT-2 4B, one V100 of 32 GB",
        "gpt2",
        _gpt(2304, 64, 24, 1024),
        _SMALL_V100,
        0,
        1,
        1,
        1024,
        True,
        False,
        None,
        "the same: more than 1.4B runs out of memory",
    ),
    Case(
        "GPT-2 13B, one V100 of 32 GB, offloading",
        "gpt2",
        _gpt(4608, 50, 36, 1024),
        _V100,
        0,
        2,
        1,
        1024,
        True,
        True,
        None,
        "the same: 13B on one V100",
        spills=True,
    ),
    Case(
        "Qwen2.5-7B-shaped, one H100, host memory",
        "llama",
        _llama(3584, 28, 18944, 28, 4, 152064),
        replace(load("h100"), host=1400 * _GIB),
        0,
        4,
        1,
        4096,
        True,
        True,
        None,
        "MegaTrain: trains, 272 TFLOP/s with an unpublished batch",
        spills=True,
    ),
)
"""Rates of A100 and H100 are those that ciuic_dist comes with. Networks are the published clusters' own, at some 90% of
what is printed on them; torchtitan's H100 have less bandwidth and power, as it says itself; the V100's rates are from
its data sheet and experience. Nothing was fitted to the figures."""
