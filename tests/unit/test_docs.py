"""The docs say what is true: their commands and examples run, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

# Settings added to the training commands of the docs: the same job, in miniature.
SMALL = [
    "train.steps=2",
    "train.global_batch=2",
    "train.warmup_steps=1",
    "train.validation_samples=2",
    "data.sequence_length=16",
]
# Commands of the docs that no test runs as they stand, and why.
NOT_RUN = {
    "make setup": "it installs packages; the make commands are tried with --dry-run",
    "make train": "it trains for minutes; the make commands are tried with --dry-run",
    "make check": "it is what runs before these tests; the make commands are tried with --dry-run",
    "make test": "it is what runs these tests; the make commands are tried with --dry-run",
    "make test TESTS='tests/unit -x'": "it is what runs these tests; the make commands are tried with --dry-run",
    ".venv/bin/pre-commit install": "it changes the git hooks of the checkout",
    "python -m benchmarks.checkpoint": "it takes long and wants a quiet machine; tests/dist tries it with --tiny",
    "python -m benchmarks.engines": "it takes long and wants a quiet machine",
    "python -m benchmarks.frontier": "it takes long and wants a quiet machine",
    "python -m benchmarks.gpu": "it needs a GPU; tests/dist tries it on the CPU",
    "python -m benchmarks.zoo": "it takes long; tests/dist tries a part of the zoo",
    "python -m benchmarks.state8": "it trains for minutes",
    "python -m benchmarks.plan": "it trains for minutes, and wants a quiet machine",
    "python -m benchmarks.update": "it is run from the checkout",
    "python -m benchmarks.published": "it is run from the checkout, and takes half a minute",
}
_NO_CLUSTER = "it needs a Slurm cluster; tests/launchers/test_slurm.py runs the same on one of its own"
_NO_KUBERNETES = "it needs a Kubernetes cluster; tests/launchers/test_kubernetes.py validates the manifests"
_NO_DOCKER = "it needs Docker; tests/launchers/test_container.py runs what the image is made of"
NOT_RUN |= {
    "sbatch launchers/slurm/train.sbatch +model=llama train.steps=100000": _NO_CLUSTER,
    "sbatch --nodes=8 --time=12:00:00 launchers/slurm/train.sbatch +model=llama train.steps=100000": _NO_CLUSTER,
    "scancel --signal=USR1 123": _NO_CLUSTER,
    "scontrol requeue 123": _NO_CLUSTER,
    "kubectl apply -f launchers/kubernetes/job.yaml": _NO_KUBERNETES,
    "kubectl apply -f launchers/kubernetes/jobset.yaml": _NO_KUBERNETES,
    "kubectl apply -f launchers/kubernetes/trainjob.yaml": _NO_KUBERNETES,
    "kubectl logs --follow job/train": _NO_KUBERNETES,
    "docker build --tag ciuic_dist .": _NO_DOCKER,
    "docker build --tag ciuic_dist --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .": _NO_DOCKER,
    "docker run --rm --gpus all --shm-size 1g --volume runs:/work ciuic_dist": _NO_DOCKER,
    "docker run --rm --volume runs:/work ciuic_dist"
    " --standalone --nproc-per-node 2 -m ciuic_dist.train +model=llama": _NO_DOCKER,
}


def _blocks(document: Path, language: str) -> list[str]:
    found = FENCE.findall(document.read_text(encoding="utf-8"))
    return [body for name, body in found if name == language]


def _commands() -> list[str]:
    """Each command of each bash block, once; a comment line or a comment behind two blanks is none of it."""
    text = "\n".join(block for document in DOCS for block in _blocks(document, "bash")).replace("\\\n", " ")
    lines = (re.split(r"(?:^|\s\s)#", line)[0].strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


COMMANDS = _commands()


def _shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``command`` as a user would type it with the environment active, and not as a part of a running make."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["OMP_NUM_THREADS"] = "1"
    environment["XDG_CACHE_HOME"] = str(folder.parent / "cache")
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _leads_somewhere(document: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = document.parent / name if name else document
    if not anchor or not path.exists():
        return path.exists()
    return anchor in map(_slug, HEADING.findall(path.read_text(encoding="utf-8")))


def test_list_of_commands_not_run_is_up_to_date() -> None:
    assert not set(NOT_RUN) - set(COMMANDS), "these commands are in no document"


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in NOT_RUN])
def test_command_of_the_docs_runs(command: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("What is written here is read again and again. " * 400, encoding="utf-8")
    command = command.replace("/my/text", str(text))
    if "ciuic_dist.train +" in command:
        command = " ".join([command, *SMALL])
    if "run=runs/deepseek-tiny" in command:  # what `make train` leaves
        trained = _shell(" ".join(["python -m ciuic_dist.train +model=deepseek", *SMALL]), tmp_path)
        assert trained.returncode == 0, trained.stderr

    done = _shell(command, tmp_path)

    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert {path.name for path in tmp_path.iterdir()} <= {"text", "runs"}, "stray files"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_knows_the_targets_of_the_docs(command: str) -> None:
    done = _shell(f"{command} --dry-run", ROOT)
    assert done.returncode == 0, done.stderr


def test_make_train_passes_on_its_arguments() -> None:
    done = _shell("make train N=3 ARGS='train.steps=1' --dry-run", ROOT)
    assert "--nproc-per-node 3 -m ciuic_dist.train +model=deepseek train.steps=1" in done.stdout


@pytest.mark.parametrize("example", _blocks(ROOT / "README.md", "python"))
def test_python_example_of_the_readme_runs_as_one_process(example: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    done = _shell("python example.py", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    local = [target for target in LINK.findall(text) if not re.match(r"https?:|mailto:", target)]
    broken = [target for target in local if not _leads_somewhere(document, target)]
    assert not broken


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in(document: Path) -> None:
    assert "TODO" not in document.read_text(encoding="utf-8")
