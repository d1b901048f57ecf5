"""The commands a user types, from a folder of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ciuic_dist
from tests.dist.train_jobs import PATIENCE, TINY, losses, train

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SHORT = (*TINY, "train.steps=2", "run.name=run")
# Embeddings of 256 bytes and 32 positions, two blocks, the last norm.
PARAMETERS = f"{32 * (256 + 32) + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32:,}"
HEADER = (
    rf"gpt2-tiny: {PARAMETERS} parameters, {{ranks}}, engine paged at stage 3, "
    r"\d,\d+ tokens of .+ and \d+ to validate"
)


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["python", "torchrun"])
def test_a_job_runs_from_any_folder_and_leaves_one_behind(launcher: tuple[str, ...], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "ciuic_dist.train", *SHORT],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(ciuic_dist.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    header, first, *_ = ended.stdout.splitlines()
    ranks = "2 ranks" if launcher else "1 rank"
    assert re.fullmatch(HEADER.format(ranks=ranks), header), header
    assert first.startswith("step 1/2 ")
    assert ended.stdout.endswith("finished: runs/run\n")
    assert len(losses(tmp_path / "runs" / "run")) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    "model",
    [
        ("+model=deepseek",),
        ("+model=llama",),
        ("+model=qwen3",),
        ("+model=gpt2",),
        ("+model=hf", "model.model_type=gpt2", "model.overrides={n_layer: 2, n_embd: 32, n_head: 2}"),
    ],
    ids=lambda model: model[0],
)
def test_every_model_trains_without_a_warning(model: tuple[str, ...], tmp_path: Path) -> None:
    data = ("data.sequence_length=16", f"data.path={__file__}")
    ended = train(tmp_path, *model, *data, "train.steps=1", "train.validation_samples=2", "train.global_batch=2")
    assert ended.err == [""]
