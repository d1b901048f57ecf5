"""What throughput a limit of memory allows, ours and other engines: python -m benchmarks.frontier --help."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.frontier import report
from benchmarks.frontier.cases import NAMES, OURS
from benchmarks.frontier.measured import Measured
from benchmarks.frontier.picture import draw
from benchmarks.frontier.results import different, points
from benchmarks.frontier.trials import run
from benchmarks.measure import machine
from benchmarks.measure.launch import ROOT, RunError
from benchmarks.measure.record import record
from benchmarks.measure.setting import Setting
from benchmarks.spill.parts import Bench

IMAGE: Final = ROOT / "docs" / "images" / "frontier.png"
FRACTIONS: Final = (1.2, 1.0, 0.75, 0.5, 0.33, 0.25, 0.2)


def arguments() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontier", description=__doc__)
    parser.add_argument(
        "--cases",
        type=lambda text: text.split(","),
        default=list(NAMES),
        metavar="NAME,...",
        help=f"of {', '.join(NAMES)}; ours is one for each budget",
    )
    parser.add_argument(
        "--fractions",
        type=lambda text: [float(part) for part in text.split(",")],
        default=list(FRACTIONS),
        metavar="F,...",
        help="budgets of ours, as parts of what it takes without one, where it trains too",
    )
    parser.add_argument("--size", default="150m", help="of llama: tiny, 30m, 150m, ...")
    parser.add_argument("--layers", type=int, default=None, help="in place of the size's own")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step over all ranks")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those; the first two are planned from")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=900.0, help="that one trial may take")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a real drive; left as it was")
    parser.add_argument("--out", type=Path, help="a stem: JSON lines go to STEM.jsonl, the tables to STEM.md")
    parser.add_argument("--image", type=Path, nargs="?", const=IMAGE, help="draw a PNG (default: %(const)s)")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing: tables and picture of a .jsonl")
    options = parser.parse_args()
    if problem := _problem(options):
        parser.error(problem)
    return options


def _problem(options: argparse.Namespace) -> str | None:
    unknown = [name for name in options.cases if name not in NAMES]
    counts = (options.ranks, options.batch, options.steps, options.repetitions, options.sequence - 1)
    checks = (
        (unknown, f"there is no case {', '.join(unknown)}: --cases takes {', '.join(NAMES)}"),
        (min(counts) < 1, "--ranks, --batch, --steps and --repetitions must be at least 1, --sequence at least 2"),
        (options.batch % max(1, options.ranks), f"--batch {options.batch} can't be divided among the ranks"),
        (not all(fraction > 0 for fraction in options.fractions), "--fractions must be above 0"),
        (options.warmup < 2, "--warmup must be at least 2: a budget is divided after the second step"),
        (not options.folder.is_dir(), f"--folder: there is no {options.folder}"),
        (options.draw and not options.draw.is_file(), f"--draw: there is no {options.draw}"),
    )
    return next((message for wrong, message in checks if wrong), None)


def tell(measured: Measured, options: argparse.Namespace) -> None:
    """Print the tables, write them, and draw."""
    text = report.text(measured.setting, measured.machine, measured.plans, measured.trials)
    print(text)
    if options.out:
        options.out.with_name(f"{options.out.name}.md").write_text(f"# The frontier\n\n{text}\n", "utf-8")
    found = points(measured.trials, measured.setting.ranks)
    if options.image and found:
        draw(found, measured.setting, options.image)


def main() -> None:
    """Run, say how each trial went as it ends, print the tables; exit code 1 where losses differ or ours fails."""
    options = arguments()
    if options.draw:
        tell(Measured.read(options.draw), options)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that folders are removed
    setting = Setting(
        model="llama",
        size=options.size,
        dtype="fp32",
        device="cpu",
        ranks=options.ranks,
        hosts="1",
        batch=options.batch,
        sequence=options.sequence,
        steps=options.steps,
        warmup=options.warmup,
        layers=options.layers,
    )
    lines = options.out and options.out.with_name(f"{options.out.name}.jsonl")
    measured = Measured(setting, machine.describe())
    about = {"setting": asdict(setting), "repetitions": options.repetitions, "machine": measured.machine}
    record(lines, "configuration", about)
    problem = ""
    with TemporaryDirectory(prefix="frontier-", dir=options.folder) as folder:
        keep = partial(record, lines)
        bench = Bench(setting, Path(folder), options.repetitions, options.seconds, keep, "benchmarks.frontier.worker")
        try:
            run(bench, options.cases, options.fractions, measured)
        except RunError as error:
            problem = str(error)
        except KeyboardInterrupt:
            problem = "ended by a signal: the tables have what was measured until then"
    tell(measured, options)
    if failed := [trial.case for trial in measured.trials if trial.part == OURS and trial.error]:
        problem = problem or f"failed: {', '.join(failed)}"
    if off := different(points(measured.trials, setting.ranks)):
        problem = problem or f"losses differ from plain PyTorch's: {', '.join(off)}"
    sys.exit(problem or 0)


if __name__ == "__main__":
    main()
