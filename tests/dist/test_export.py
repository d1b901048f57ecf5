"""What a run has trained leaves as Hugging Face has it, and speaks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

import ciuic_dist as cd
from ciuic_dist import export, generate
from ciuic_dist.compose import compose
from ciuic_dist.config import Config
from ciuic_dist.loop.trained import filled, trained
from ciuic_dist.models.build import build
from tests.dist.launch import launch
from tests.dist.stored import everything_in
from tests.dist.train_jobs import TINY, train
from tests.unit.published import assert_same, reference, words

TOKENS = torch.arange(24).view(2, 12) * 37 % 256
DEEPSEEK = ("+model=deepseek", "model.overrides.num_hidden_layers=2", *TINY[2:])
SHORT = ("train.steps=2", "train.global_batch=6")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of several models, engines and worlds."""
    folder = tmp_path_factory.mktemp("jobs")
    for name, world, settings in (
        ("alone", 1, TINY),
        ("gpt2", 3, (*TINY, "engine.stage=3")),
        ("deepseek", 2, (*DEEPSEEK, "train.precision=bf16")),
    ):
        train(folder, *settings, *SHORT, f"run.name={name}", world=world)
    return folder / "runs"


def settings_of(name: str) -> Config:
    return compose(DEEPSEEK if name == "deepseek" else TINY)


def trained_logits(name: str, checkpoint: Path) -> Tensor:
    """Of the model that ``cd.load`` makes."""
    model = cd.shard(build(settings_of(name).model, vocab_size=256, seed=5))
    cd.load(checkpoint, model=model)
    with torch.no_grad():
        logits: Tensor = model.eval()(TOKENS).logits
    return logits


def run_command(module: Any, *arguments: str) -> int:
    code: int = module.main(arguments)
    return code


def exported_logits(folder: Path) -> Tensor:
    with torch.no_grad():
        logits: Tensor = reference(folder)(TOKENS).logits
    return logits


@pytest.mark.parametrize("name", ["alone", "gpt2", "deepseek"])
def test_an_export_has_the_trained_models_logits(
    name: str, runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "published"
    assert run_command(export, f"run={runs / name}", f"to={to}") == 0
    assert capfd.readouterr().out.startswith(f"{to}: ")
    (expected,) = launch(trained_logits, name, runs / name / "checkpoints" / "step-000002", world=1)
    assert torch.equal(exported_logits(to), expected)
    assert [entry.name for entry in tmp_path.iterdir()] == ["published"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed"])
def test_what_another_engine_trained_is_exported(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed" if engine == "deepspeed" else "torch")
    train(tmp_path, *TINY, *SHORT, f"engine={engine}", "run.name=run", world=2)
    run = tmp_path / "runs" / "run"
    assert run_command(export, f"run={run}", f"to={tmp_path / 'published'}") == 0
    saved = everything_in(run / "checkpoints" / "step-000002")
    values = {name: value for name, value in saved.items() if name.startswith("model.")}
    exported = reference(tmp_path / "published").state_dict()
    assert all(torch.equal(exported[name.removeprefix("model.")], value) for name, value in values.items())
    assert exported.keys() - {name.removeprefix("model.") for name in values} <= {"lm_head.weight"}  # tied


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_a_checkpoint_that_others_wrote_is_exported(prefix: str, runs: Path, tmp_path: Path) -> None:
    assert run_command(export, f"run={runs / 'gpt2'}", f"to={tmp_path / 'first'}") == 0
    state = reference(tmp_path / "first").state_dict()
    changed = {prefix + name: value + 1 if "ln_f" in name else value for name, value in state.items()}
    dcp.save(changed, checkpoint_id=tmp_path / "plain", no_dist=True)
    arguments = (f"run={runs / 'gpt2'}", f"checkpoint={tmp_path / 'plain'}", f"to={tmp_path / 'second'}")
    assert run_command(export, *arguments) == 0
    again = reference(tmp_path / "second").state_dict()
    assert all(torch.equal(again[name], changed[prefix + name]) for name in state)


def test_what_is_there_stays(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("mine")
    assert run_command(export, f"run={runs / 'alone'}", f"to={tmp_path}") == 2
    assert "is there already, and won't be overwritten" in capfd.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("lost", [True, False])
def test_a_damaged_checkpoint_is_named_and_leaves_nothing_that_looks_whole(
    lost: bool, runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(runs / "gpt2" / "checkpoints" / "step-000002", broken)
    pages = max(broken.glob("*.pages"))
    content = bytearray(pages.read_bytes())
    content[::97] = bytes(byte ^ 1 for byte in content[::97])  # parameters too
    if lost:
        pages.unlink()
    else:
        pages.write_bytes(content)
    assert run_command(export, f"run={runs / 'gpt2'}", f"checkpoint={broken}", f"to={tmp_path / 'published'}") == 2
    assert f"error: {pages}: " in capfd.readouterr().err
    assert not (tmp_path / "published").exists()


def test_a_runs_tokenizer_goes_with_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    train(tmp_path, *TINY, *SHORT, f"data.tokenizer={words(tmp_path / 'words')}", "run.name=words")
    run = tmp_path / "runs" / "words"
    assert run_command(export, f"run={run}") == 0
    loaded = AutoTokenizer.from_pretrained(run / "export")
    assert loaded("import return").input_ids == [4, 3]
    assert reference(run / "export").config.vocab_size == 5
    capfd.readouterr()
    assert run_command(generate, f"run={run}", "prompt=import def", "tokens=5") == 0
    said = capfd.readouterr().out.split()
    assert said[:2] == ["import", "def"]
    assert set(said) <= {"def", "return", "import"}


def greedily(model: Any, prompt: bytes, count: int) -> list[int]:
    """The likeliest tokens, without any of transformers' generation."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1]):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("name", ["gpt2", "deepseek"])
def test_the_likeliest_text_is_the_models_own(
    name: str, runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(export, f"run={runs / name}", f"to={tmp_path / 'published'}") == 0
    loaded = reference(tmp_path / "published")
    assert_same(filled(trained(runs / name)), loaded)
    expected = bytes(greedily(loaded, b"import ", 9)).decode(errors="replace")
    capfd.readouterr()
    assert run_command(generate, f"run={runs / name}", "prompt=import ", "tokens=9", "temperature=0") == 0
    assert capfd.readouterr().out == f"{expected}\n"


def test_a_seed_says_what_is_drawn(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in (1, 1, 2):
        assert run_command(generate, f"run={runs / 'gpt2'}", "prompt=a = b", "tokens=12", f"seed={seed}") == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("a = b") for text in texts)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (export, (), "no run: add run=runs/<name>"),
        (export, ("run=/not/here",), "there is no run at /not/here"),
        (export, ("run={runs}/gpt2", "folder=/x"), "there is no setting folder: there are run, to, checkpoint"),
        (export, ("run={runs}/gpt2", "fast"), "fast is no setting: write key=value"),
        (export, ("run={runs}/gpt2", "checkpoint=/not/here", "to={to}"), "there is no checkpoint at /not/here"),
        (export, ("run={runs}/gpt2", "checkpoint={deepseek}", "to={to}"), "is a checkpoint of another model: it lacks"),
        (generate, ("run={runs}/gpt2",), "no prompt: add prompt=..."),
        (generate, ("run={runs}/gpt2", "prompt="), "prompt= is empty"),
        (generate, ("run={runs}/gpt2", "prompt=a", "tokens=32"), "beyond the model's 32 positions"),
        (generate, ("run={runs}/gpt2", "prompt=a", "tokens=many"), "tokens and seed are whole numbers"),
        (generate, ("run={runs}/gpt2", "prompt=a", "temperature=-1"), "temperature and seed not negative"),
    ],
)
def test_what_cannot_be_is_one_line(
    module: Any, arguments: tuple[str, ...], message: str, runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"runs": runs, "to": tmp_path / "to", "deepseek": runs / "deepseek" / "checkpoints" / "step-000002"}
    assert run_command(module, *(argument.format(**places) for argument in arguments)) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_run_without_a_checkpoint_is_refused(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copy(runs / "gpt2" / "config.yaml", tmp_path)
    assert run_command(export, f"run={tmp_path}") == 2
    assert "has no complete checkpoint yet" in capfd.readouterr().err
