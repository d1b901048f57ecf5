"""Models of several architectures as transformers saves them, and reads them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ciuic_dist.config import ModelConfig
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import materialize

FAMILIES = ["llama", "gpt2", "qwen3", "deepseek"]  # plain, tied and transposed, tied, experts that are fused in memory
SMALL = "100KB"
"""Of a file, so that there are several."""


def saved(family: str, folder: Path, seed: int = 3) -> nn.Module:
    """A tiny model, and its weights in ``folder``; no buffer has the value that it begins with."""
    model = materialize(build(ModelConfig(family), vocab_size=None, seed=seed))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in model.state_dict():
                buffer.copy_(torch.rand_like(buffer))
    model.save_pretrained(folder, max_shard_size=SMALL)  # type: ignore[operator]
    return model


def words(folder: Path) -> Path:
    """A tokenizer of a few words, as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<eos>": 1, "def": 2, "return": 3, "import": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")  # type: ignore[no-untyped-call]
    made.save_pretrained(folder)
    return folder


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """What transformers reads."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def on_meta(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of that folder as a user builds it, without values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that no state dict has too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit, dtypes and names included."""
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
