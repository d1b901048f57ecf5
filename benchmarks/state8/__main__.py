"""Train with fp32 and with 8-bit optimizer state, everything else alike: python -m benchmarks.state8 --help."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.measure import machine
from benchmarks.measure.launch import ROOT
from benchmarks.measure.record import record
from benchmarks.state8 import report
from benchmarks.state8.report import Run
from ciuic_dist.monitor import metrics

KINDS = ("fp32", "8bit")


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state8", description=__doc__)
    parser.add_argument("--model", default="deepseek", help="as +model= of ciuic_dist.train (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for one training")
    parser.add_argument("--out", type=Path, help="a folder for state8.jsonl, state8.md and state8.png")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="of ciuic_dist.train, such as train.steps=100")
    return parser.parse_args()


def train(kind: str, seed: int, options: argparse.Namespace) -> Run:
    """One training, in a process of its own. Raises CalledProcessError or TimeoutExpired where it isn't finished."""
    with TemporaryDirectory(prefix="state8-") as folder:
        settings = [f"optimizer.state_dtype={kind}", f"train.seed={seed}", f"run.folder={folder}", "run.name=run"]
        settings.append("run.plan=null")  # two plans might differ in more than what is compared
        command = [sys.executable, "-m", "ciuic_dist.train", f"+model={options.model}", *options.settings, *settings]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        subprocess.run(command, env=environment, stdout=sys.stderr, check=True, timeout=options.limit)
        steps = list(metrics.read(Path(folder) / "run/metrics.jsonl"))
        config = yaml.safe_load((Path(folder) / "run/config.yaml").read_text(encoding="utf-8"))
    validations = {step["step"]: step["validation_loss"] for step in steps if "validation_loss" in step}
    used = steps[-1]["memory"]["device"]["used"]
    return Run(kind, seed, config, [step["loss"] for step in steps], validations, used)


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """Both kinds in turn for each seed."""
    for seed, kind in product(range(options.seeds), KINDS):
        yield train(kind, seed, options)


def main() -> None:
    """Train, print the table, and keep records, table and picture."""
    options = arguments()
    out: Path | None = options.out
    about, done = machine.describe(), []
    if out:
        (out / "state8.jsonl").unlink(missing_ok=True)
    lines = out / "state8.jsonl" if out else None
    record(lines, "machine", about)
    for run in runs(options):
        done.append(run)
        record(lines, "run", asdict(run))
    text = f"{report.configuration(done, about)}\n{report.table(done)}\n"
    print(text)
    if out:
        (out / "state8.md").write_text(text, encoding="utf-8")
        report.plot(done, out / "state8.png")


if __name__ == "__main__":
    main()
