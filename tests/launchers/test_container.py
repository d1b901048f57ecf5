"""The Dockerfile: linted, and what it runs is run, in a changed root and not in Docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
BIN = Path(sys.executable).parent
# This machine's own files below, what is written above them in memory, and both seen in ``root``.
SANDBOX = """
set -eu
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --rbind /proc root/proc
mount --rbind /dev root/dev
exec chroot root /bin/sh -euc "$2"
"""


def instructions() -> list[tuple[str, str]]:
    """Such as ("RUN", "pip install ..."), comments left out and continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", "")
    lines = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(name, rest.strip()) for name, _, rest in lines]


def as_shell() -> str:
    """What building the image does, as a script; python and pip are those of this environment."""
    python = Path(sys.executable).resolve()
    # No build isolation, which pip spells as false or 0: it would fetch a setuptools that is here.
    script = [f"export PATH={BIN}:$PATH PIP_ROOT_USER_ACTION=ignore PIP_NO_BUILD_ISOLATION=0; unset PYTHONPATH"]
    script.append(f"chmod go+x {' '.join(map(str, python.parents))}  # or only root would find it")
    for name, rest in instructions():
        if name == "ARG":
            variable, _, value = rest.partition("=")
            script.append(f"export {variable}={shlex.quote(value)}")
        elif name == "WORKDIR":
            script.append(f"mkdir -p {rest}; cd {rest}")
        elif name == "COPY":
            *sources, target = rest.split()
            script += [f"cp -r {ROOT / source} {target}" for source in sources]
        elif name == "RUN":
            script.append(rest)
    return "\n".join(script)


def in_sandbox(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", SANDBOX, "sandbox", str(folder), script],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_linter_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_the_linter_would(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text(encoding="utf-8").replace("--no-cache-dir", "", 1), encoding="utf-8")
    assert subprocess.run([BIN / "hadolint", wrong], capture_output=True, check=False).returncode == 1


def test_it_ends_as_nobody_with_our_torchrun_as_its_entry() -> None:
    known = dict(instructions())  # the last of each
    assert known["USER"].isdecimal(), "Kubernetes can't tell from a name that it isn't root"
    assert json.loads(known["ENTRYPOINT"]) == ["python", "-m", "ciuic_dist.torchrun"]


def test_the_context_has_what_is_copied() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]}
    assert kept == {source.removeprefix("./") for source in copied}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="root makes the sandbox")
def test_what_it_runs_works(tmp_path: Path) -> None:
    """Packages that this environment has already, torch among them, are not installed again."""
    possible = in_sandbox("true", tmp_path)
    if possible.returncode:
        pytest.skip(f"no sandbox here: {possible.stderr}")
    entry, cmd = (json.loads(dict(instructions())[name]) for name in ("ENTRYPOINT", "CMD"))
    small = ["train.steps=1", "train.global_batch=2", "train.validation_samples=2", "data.sequence_length=16"]
    cmd[cmd.index("auto")] = "2"
    user = dict(instructions())["USER"]
    script = f"""{as_shell()}
ls -ld /work
python -c 'import ciuic_dist; print(ciuic_dist.__file__)'
export HOME=/home/trainer OMP_NUM_THREADS=1
setpriv --reuid={user} --regid={user} --clear-groups {shlex.join([*entry, *cmd, *small, "run.plan=null"])}
ls -l /work/runs/deepseek-tiny"""
    done = in_sandbox(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^drwx\S+ \d+ trainer .* /work$", done.stdout, re.MULTILINE)
    assert "site-packages/ciuic_dist/__init__.py" in done.stdout
    assert "finished: runs/deepseek-tiny" in done.stdout
    assert re.search(r"^-rw\S+ \d+ trainer trainer .* metrics.jsonl$", done.stdout, re.MULTILINE)
    assert not Path("/home/trainer").exists(), "it got out of its root"
