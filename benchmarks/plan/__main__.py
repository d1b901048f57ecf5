"""Predict peak memory and step time, then measure them: python -m benchmarks.plan --help."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.measure import machine
from benchmarks.measure.hosts import Host
from benchmarks.measure.launch import RunError, launch
from benchmarks.measure.record import reason, record
from benchmarks.plan.cases import CASES, Case
from benchmarks.plan.report import Outcome, table

_HERE: Final = Host("127.0.0.1")


def arguments() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=600.0, help="that one case may take")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a real drive; left as it was")
    parser.add_argument("--out", type=Path, help="a stem: JSON lines go to STEM.jsonl, the table to STEM.md")
    options = parser.parse_args()
    if not any(options.only in case.name for case in CASES):
        parser.error(f"--only: no case has {options.only}: there are {', '.join(case.name for case in CASES)}")
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    if not options.folder.is_dir():
        parser.error(f"--folder: there is no {options.folder}")
    return options


def run(case: Case, folder: str, steps: int, seconds: float, *, device: str = "cpu") -> Outcome:
    """One case, which may take so many ``seconds``."""
    command = ("benchmarks.plan.worker", json.dumps(asdict(case)), folder, str(steps))
    try:
        with machine.watched() as others:
            reports = launch(command, case.ranks, [_HERE], seconds, device=device)
    except RunError as error:
        return Outcome(case.name, error=str(error))
    return replace(outcome(case, reports), others=others[0])


def outcome(case: Case, reports: list[dict[str, Any]]) -> Outcome:
    """The ranks' mean; a step is over when its last rank is."""
    steps = [max(times) for times in zip(*(report["step_seconds"] for report in reports), strict=True)]
    return Outcome(
        case.name,
        predicted_peak=mean(report["predicted"]["device"] for report in reports),
        measured_peak=mean(report["peak"] for report in reports),
        predicted_seconds=mean(report["predicted"]["seconds"] for report in reports),
        measured_seconds=sorted(steps)[len(steps) // 2],
        slowest=max(steps),
        quickest=min(steps),
        probing=mean(report["probing"] for report in reports),
    )


def main() -> None:
    """Run all, say how each went as it ends, print the table; exit code 1 where one failed."""
    options = arguments()
    lines = options.out and options.out.with_name(f"{options.out.name}.jsonl")
    about = machine.describe()
    record(
        lines, "configuration", {"steps": options.steps, "cases": [asdict(case) for case in CASES], "machine": about}
    )
    outcomes = []
    with TemporaryDirectory(prefix="plan-", dir=options.folder) as folder:
        for case in (case for case in CASES if options.only in case.name):
            outcomes.append(run(case, folder, options.steps, options.seconds))
            record(lines, "outcome", asdict(outcomes[-1]))
            last = outcomes[-1]
            said = reason(last.error) if last.error else f"peak {last.peak_error:+.1%}, step {last.step_error:+.1%}"
            print(f"{case.name}: {said}", file=sys.stderr, flush=True)
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    text = f"{facts}\n\n{table(outcomes)}"
    print(text)
    if options.out:
        options.out.with_name(f"{options.out.name}.md").write_text(f"# Predicted and measured\n\n{text}\n", "utf-8")
    sys.exit(any(outcome.error for outcome in outcomes))


if __name__ == "__main__":
    main()
