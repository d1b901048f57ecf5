"""A model comes from a hub as from a folder; where it can't come, every rank says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ciuic_dist as cd
from ciuic_dist.comm.errors import Disagreement
from ciuic_dist.config import ConfigError
from ciuic_dist.data import DataError, tokenize
from tests.dist.launch import Ranks, launch
from tests.dist.train_jobs import losses
from tests.hub import COMMIT, TOKEN, Hub, environment
from tests.unit.published import on_meta, reference, saved, words

Variables = dict[str, str]
SHORT = (
    *("+model=hf", "model.pretrained=true", f"data.path={__file__}", "data.sequence_length=16", "run.plan=null"),
    *("train.steps=2", "train.global_batch=2", "train.warmup_steps=1", "train.validation_samples=2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer."""
    made = words(tmp_path_factory.mktemp("llama"))
    saved("llama", made)
    return made


def start(folder: Path, arguments: Sequence[str], variables: Sequence[Variables]) -> tuple[int, str]:
    """The exit code of ``train`` on this rank, and what it says of errors."""
    from ciuic_dist.train import main

    os.chdir(folder)
    with environment(**variables[int(os.environ["RANK"])]), redirect_stderr(StringIO()) as said:
        code = main(arguments)
    return code, said.getvalue()


def train(folder: Path, *arguments: str, variables: Sequence[Variables]) -> list[tuple[int, str]]:
    """A short run, with a rank for each of ``variables``."""
    ranks = Ranks(len(variables))
    outcomes = ranks.run(start, folder, (*SHORT, *arguments), variables)
    ranks.kill()
    assert all(outcome.error is None for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes]


@pytest.mark.slow
def test_a_hub_id_trains_as_a_folder_does(folder: Path, tmp_path: Path) -> None:
    def losses_of(name: str, model: str, variables: Variables) -> list[float]:
        settings = (f"model.path={model}", f"data.tokenizer={model}", f"run.name={name}")
        assert train(tmp_path, *settings, variables=[variables] * 2) == [(0, "")] * 2
        return losses(tmp_path / "runs" / name)

    with Hub({"org/llama": folder}) as hub:
        variables = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub.url}
        fetched = losses_of("fetched", "org/llama", variables)
    weights = [file.name for file in folder.glob("*.safetensors")]
    assert len(weights) > 1
    assert {hub.asked["GET", name] for name in weights} == {1}
    assert fetched == losses_of("folder", str(folder), {})
    assert fetched == losses_of("gone", "org/llama", variables)
    assert fetched == losses_of("offline", "org/llama", variables | {"HF_HUB_OFFLINE": "1"})


def load(folder: Path, weights: str, variables: Variables) -> dict[str, Tensor]:
    """The sharded model's parameters, on rank 0."""
    with environment(**variables):
        model = cd.shard(on_meta(folder), weights=weights)
    return cd.full_state_dict(model)


def assert_same(values: dict[str, Tensor], folder: Path) -> None:
    """They are those in ``folder``."""
    expected = reference(folder).state_dict()
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], value) for name, value in expected.items())


def test_a_second_start_asks_only_which_commit_it_is(folder: Path, tmp_path: Path) -> None:
    with Hub({"org/llama": folder}) as hub:
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        assert_same(launch(load, folder, "org/llama", variables)[0], folder)
        hub.asked.clear()
        assert_same(launch(load, folder, "org/llama", variables)[0], folder)
    assert hub.asked == {("HEAD", "config.json"): 2}


def two_commits(folder: Path, caches: Path) -> str:
    """Why ranks whose hubs have another commit each can't load."""
    rank = os.environ["RANK"]
    with Hub({"org/llama": folder}, commit=rank * 40) as hub:
        variables = {"HF_HOME": str(caches / rank), "HF_ENDPOINT": hub.url}
        with pytest.raises(Disagreement) as caught:
            load(folder, "org/llama", variables)
    return str(caught.value)


def test_ranks_load_one_commit_or_none(folder: Path, tmp_path: Path) -> None:
    for message in launch(two_commits, folder, tmp_path):
        assert f"weights is '{'0' * 40}' on rank 0 and '{'1' * 40}' on rank 1" in message


def download(variables: Variables, files: str) -> None:
    """As ``hf download`` does, which doesn't say what there isn't."""
    from huggingface_hub import snapshot_download

    with environment(**variables):
        snapshot_download("org/llama", allow_patterns=files)


def test_offline_the_cache_is_all_there_is(folder: Path, tmp_path: Path) -> None:
    with Hub({"org/llama": folder}) as hub:
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        offline = variables | {"HF_HUB_OFFLINE": "1"}
        launch(download, variables, "config.json")
        assert f"/models--org--llama/snapshots/{COMMIT} holds no weights" in refusal(folder, "org/llama", offline)
        launch(download, variables, "*")
    assert_same(launch(load, folder, "org/llama", offline)[0], folder)


def pickled(folder: Path, to: Path) -> Path:
    """The model of ``folder`` in two files of pickles."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors*"))
    values = list(reference(folder).state_dict().items())
    half = len(values) // 2
    parts = {"pytorch_model-1.bin": dict(values[:half]), "pytorch_model-2.bin": dict(values[half:])}
    for name, part in parts.items():
        torch.save(part, to / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (to / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return to


def load_whole(folder: Path, variables: Variables) -> dict[str, Tensor]:
    with pytest.warns(UserWarning, match="each rank reads all of org/llama"):
        return load(folder, "org/llama", variables)


def test_weights_of_another_kind_load_too(folder: Path, tmp_path: Path) -> None:
    with Hub({"org/llama": pickled(folder, tmp_path / "pickled")}) as hub:
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        (values,) = launch(load_whole, folder, variables, world=1)
    assert_same(values, folder)


def refuse(folder: Path, weights: str, variables: Variables) -> str:
    with environment(**variables), pytest.raises(ConfigError) as refused:
        cd.shard(on_meta(folder), weights=weights)
    return str(refused.value)


def refusal(folder: Path, weights: str, variables: Variables) -> str:
    """The line that both ranks end with."""
    first, second = launch(refuse, folder, weights, variables)
    assert first == second
    assert "\n" not in first
    return str(first)


CUT = "model-00002-of-00030.safetensors"
FETCHED = "of org/llama couldn't be fetched from {hub}: "


@pytest.mark.parametrize(
    ("weights", "fault", "message"),
    [
        ("not/a/hub", {}, "not/a/hub is neither a folder nor a hub id such as org/name"),
        ("org/other", {}, "org/other is neither a folder nor a repository that {hub} shows you: check the name; "),
        ("org/llama", {"gated": "org/llama"}, "org/llama is gated: ask for access at {hub}/org/llama, then log in "),
        ("org/llama", {"failing": "config.json"}, f"config.json {FETCHED}Server error '500 Internal Server Error'"),
        ("org/llama", {"failing": "model.safetensors"}, f"model.safetensors {FETCHED}Server error '500 Internal "),
        ("org/llama", {"cut": CUT}, f"{CUT} {FETCHED}peer closed connection without sending complete message body"),
        ("org/empty", {}, "org/empty holds no weights (model.safetensors, "),
    ],
)
def test_what_the_hub_refuses_is_an_error_on_all_ranks(
    weights: str, fault: dict[str, str], message: str, folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with Hub({"org/llama": folder, "org/empty": empty}, **fault) as hub:
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        said = refusal(folder, weights, variables)
    assert said.startswith(message.format(hub=hub.url))


def test_a_hub_out_of_reach_is_an_error_on_all_ranks(folder: Path, tmp_path: Path) -> None:
    with Hub({}) as gone:
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": gone.url}
    said = refusal(folder, "org/llama", variables)
    assert said.startswith(
        f"config.json {FETCHED.format(hub=gone.url)}[Errno 111] Connection refused. Check the network"
    )
    said = refusal(folder, "org/llama", variables | {"HF_HUB_OFFLINE": "1"})
    assert f"config.json of org/llama isn't in {tmp_path}/hub, and HF_HUB_OFFLINE" in said


def tokenize_wrongly(variables: Variables) -> str:
    with environment(**variables), pytest.raises(DataError) as refused:
        tokenize.named("org/llama")
    return str(refused.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_whose_files_do_not_all_come_is_an_error(file: str, folder: Path, tmp_path: Path) -> None:
    with Hub({"org/llama": folder}, failing=file) as hub:
        (said,) = launch(tokenize_wrongly, {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}, world=1)
    assert f"{file} {FETCHED.format(hub=hub.url)}Server error '500 Internal Server Error'" in said


def test_a_cache_that_cannot_be_written_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Hub({"org/llama": folder}) as hub:
        said = refusal(folder, "org/llama", {"HF_HUB_CACHE": str(tmp_path / "file"), "HF_ENDPOINT": hub.url})
    assert said.startswith(f"config.json of org/llama can't be stored in {tmp_path}/file ([Errno 20] Not a directory")


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("org/llama", "no tokenizer 'org/llama': org/llama is gated: ask for access at "),
        ("bytes", "org/llama is gated: "),
    ],
)
def test_where_one_rank_may_not_see_a_model_none_trains(
    tokenizer: str, message: str, folder: Path, tmp_path: Path
) -> None:
    with Hub({"org/llama": folder}, gated="org/llama") as hub:
        seeing, blind = (
            {"HF_HOME": str(tmp_path / cache), "HF_ENDPOINT": hub.url} for cache in ("seeing", "blind")
        )  # who shares a cache sees what is there
        settings = ("model.path=org/llama", f"data.tokenizer={tokenizer}")
        ended = train(tmp_path, *settings, variables=[seeing | {"HF_TOKEN": TOKEN}, blind])
    for rank, (code, said) in enumerate(ended):
        assert code == 2
        assert said.startswith(f"rank {rank}: error: {message}")
        assert said.count("\n") == 1
