"""The built wheel holds all that the command line needs: built offline, installed aside, run from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "ciuic_dist")


def _run(*command: str, folder: Path, path: Path | None = None) -> str:
    """Output of ``command`` run in ``folder`` with ``path`` first on the import path; fails the test if it fails."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": str(path or "")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the sources, nor a stale one packed."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), folder=source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel), folder=target)
    return target


def test_wheel_holds_every_module_and_config_and_nothing_else(wheel: Path) -> None:
    files = [path for path in (ROOT / "ciuic_dist").rglob("*") if path.suffix in {".py", ".yaml", ".typed"}]
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert any(name.startswith("ciuic_dist/configs/model/") for name in packed)


def test_wheel_carries_licence_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "ciuic_dist/py.typed" in names


def test_command_line_runs_from_the_wheel_in_another_folder(installed: Path, tmp_path: Path) -> None:
    where = _run(sys.executable, "-c", "import ciuic_dist; print(ciuic_dist.__file__)", folder=tmp_path, path=installed)
    assert Path(where.strip()).is_relative_to(installed)

    text = _run(sys.executable, "-m", "ciuic_dist.train", "--help", folder=tmp_path, path=installed)
    assert "deepseek" in text
    assert "optimizer" in text
    assert not list(tmp_path.iterdir()), "--help left something behind"


def test_configs_compose_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "from ciuic_dist.compose import compose; print(compose(['+model=deepseek', 'engine=fsdp2']).engine.name)"
    assert _run(sys.executable, "-c", code, folder=tmp_path, path=installed).strip() == "fsdp2"
