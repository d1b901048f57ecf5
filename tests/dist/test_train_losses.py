"""Every engine trains the same model on the same samples: plain PyTorch in one process is the reference."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from ciuic_dist import data
from ciuic_dist.compose import compose
from ciuic_dist.loop.schedule import lr_factor
from ciuic_dist.models.build import build
from ciuic_dist.models.deferred import materialize
from tests.dist.train_jobs import NO_DROPOUT, TINY, losses, train

STEPS = 5
JOB = (*TINY, *NO_DROPOUT, f"train.steps={STEPS}", "run.name=run")


@functools.cache
def plain_losses() -> list[float]:
    """The job's losses in plain PyTorch: one process, the whole global batch at once."""
    config = compose(JOB)
    corpus = data.load(config.data, seed=config.train.seed)
    model = materialize(build(config.model, vocab_size=corpus.vocab_size, seed=config.train.seed))
    optimizer = torch.optim.AdamW(model.parameters(), betas=config.optimizer.betas, weight_decay=0.1)
    batch = config.train.global_batch
    found = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = config.optimizer.lr * lr_factor(step, config.train)
        ids = torch.stack([corpus.train.sample(step * batch + row) for row in range(batch)])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(
    ("world", "arguments"),
    [
        pytest.param(1, (), id="paged-alone"),
        pytest.param(2, (), id="paged"),
        pytest.param(2, ("engine.stage=0", "train.micro_batch=3"), id="paged-stage0-accumulating"),
        pytest.param(2, ("train.activation_checkpointing=true",), id="paged-recomputing"),
        pytest.param(3, ("engine.stage=2",), id="paged-stage2-on-3"),
        pytest.param(4, ("engine.group=2",), id="paged-groups"),
        pytest.param(4, ("engine=fsdp2", "engine.group=2"), id="fsdp2-groups"),
        pytest.param(1, ("engine=fsdp2",), id="fsdp2-alone"),
        pytest.param(2, ("engine=fsdp2",), id="fsdp2"),
        pytest.param(2, ("engine=fsdp2", "engine.stage=2", "train.micro_batch=1"), id="fsdp2-stage2-accumulating"),
        pytest.param(2, ("engine=fsdp2", "train.activation_checkpointing=true"), id="fsdp2-recomputing"),
        pytest.param(1, ("engine=deepspeed",), id="deepspeed-alone"),
        pytest.param(
            2, ("engine=deepspeed", "engine.stage=1", "train.micro_batch=3"), id="deepspeed-stage1-accumulating"
        ),
        pytest.param(2, ("engine=deepspeed",), id="deepspeed-stage3"),
    ],
)
def test_an_engine_has_the_losses_of_plain_pytorch(world: int, arguments: tuple[str, ...], tmp_path: Path) -> None:
    if "engine=deepspeed" in arguments:
        pytest.importorskip("deepspeed")
    train(tmp_path, *JOB, *arguments, world=world)
    assert losses(tmp_path / "runs" / "run") == pytest.approx(plain_losses(), abs=1e-5)


def test_bf16_stays_near_fp32(tmp_path: Path) -> None:
    train(tmp_path, *JOB, "engine=fsdp2", "train.precision=bf16", world=2)
    found = losses(tmp_path / "runs" / "run")
    assert found == pytest.approx(plain_losses(), abs=0.05)
    assert found != pytest.approx(plain_losses(), abs=1e-5)


def test_8_bit_state_stays_near_fp32(tmp_path: Path) -> None:
    train(tmp_path, *JOB, "optimizer.state_dtype=8bit", world=2)
    found = losses(tmp_path / "runs" / "run")
    assert found == pytest.approx(plain_losses(), abs=0.02)
    assert found != plain_losses()


LARGER = ("model.overrides.n_embd=128", "model.overrides.n_layer=3", "train.micro_batch=1")


def test_a_budget_spills_and_changes_nothing(tmp_path: Path) -> None:
    free, spilled = tmp_path / "free", tmp_path / "spilled"
    for folder in (free, spilled):
        folder.mkdir()
    train(free, *JOB, *LARGER, world=2)
    train(spilled, *JOB, *LARGER, "memory.device=5MB", f"memory.nvme={tmp_path}:100MB", world=2)
    assert losses(spilled / "runs/run") == losses(free / "runs/run")
    records = [json.loads(line) for line in (spilled / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert all(record["spilling"]["bytes"]["device->nvme"] > 0 for record in records)
    for record in records:
        config = compose(JOB)
        tokens = config.train.global_batch * config.data.sequence_length
        own = record["spilling"]["bytes"]["device->nvme"] * record["tokens_per_s"] / tokens
        assert record["spilling"]["nvme_bytes_per_day"] > 1.5 * own * 86400, "what both ranks write"
    assert all(record["memory"]["device"]["peak"] <= 5_000_000 for record in records)
