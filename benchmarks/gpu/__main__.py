"""What there is to measure on one GPU, within minutes: python -m benchmarks.gpu --help."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.gpu import report
from benchmarks.gpu.links import Sizes
from benchmarks.gpu.trials import PLANS, TINY_PLANS, Room, Trial, tiny, trials
from benchmarks.measure import machine
from benchmarks.measure.hosts import Host
from benchmarks.measure.launch import RunError, launch
from benchmarks.measure.record import reason, record
from benchmarks.plan.__main__ import run as run_case
from benchmarks.plan.cases import Case
from benchmarks.plan.report import Outcome, table

PARTS: Final = ("links", "plan", "train")
_MIB: Final = 1 << 20
_SIZES: Final = Sizes([size * _MIB for size in (1, 4, 16, 32, 64)], 2048 * _MIB, 32 * _MIB, 2048 * _MIB, 256 * _MIB)
_TINY: Final = Sizes([_MIB, 4 * _MIB], 16 * _MIB, _MIB, 16 * _MIB, _MIB)
_OF_DEVICE: Final = 0.95
"""What trainings may have of the device's free memory, and of the host's: libraries take some beside."""
_OF_HOST: Final = 0.85
_TIMED: Final = 5
_LATE: Final = "not run: the minutes were over"


def arguments() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=list(PARTS),
        metavar="NAME,...",
        help=", ".join(PARTS),
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models and sizes that show that all of it runs")
    parser.add_argument("--only", default="", metavar="TEXT", help="trainings and plans whose name has it")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all; what is not begun by then is left out")
    parser.add_argument("--seconds", type=float, default=180.0, help="that one process may take")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a real drive; left as it was")
    parser.add_argument("--out", type=Path, help="a stem: JSON lines go to STEM.jsonl, the tables to STEM.md")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}: --parts takes {', '.join(PARTS)}")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu is for --tiny: other models take hours there")
    if min(options.minutes, options.seconds) <= 0:
        parser.error("--minutes and --seconds must be above 0")
    if not options.folder.is_dir():
        parser.error(f"--folder: there is no {options.folder}")
    return options


@dataclass(slots=True)
class Bench:
    """Runs processes one at a time, tells how each went, and keeps it."""

    options: argparse.Namespace
    folder: str
    until: float  # by the monotonic clock
    lines: Path | None
    failed: bool = False

    def seconds(self) -> float:
        """That a process may take which begins now; none are left at 0."""
        return float(min(self.options.seconds, max(0.0, self.until - time.monotonic())))

    def worker(self, *command: str) -> dict[str, Any]:
        """What `python -m benchmarks.gpu.COMMAND...` leaves. Raises RunError."""
        if not self.seconds():
            raise RunError(_LATE)
        module, *rest = command
        device = self.options.device
        cores = 1 if device == "cpu" else len(os.sched_getaffinity(0))  # the optimizers of others run on them
        here = Host("127.0.0.1", environment={"OMP_NUM_THREADS": str(cores)})
        return launch((f"benchmarks.gpu.{module}", *rest), 1, [here], self.seconds(), device=device)[0]

    def links(self) -> str:
        """The part's table."""
        sizes = _TINY if self.options.tiny else _SIZES
        try:
            found = self.worker("links", json.dumps(asdict(sizes)), self.folder)
        except RunError as error:
            self.failed = True
            record(self.lines, "links", asdict(sizes) | {"error": str(error)})
            _tell("links", reason(str(error)))
            return f"failed: {reason(str(error))}"
        record(self.lines, "links", asdict(sizes) | found)
        _tell("links", "done")
        return report.links(found)

    def train(self, room: Room) -> str:
        """The part's table."""
        wanted: Iterator[Trial] = tiny(room, self.options.device) if self.options.tiny else trials(room)
        return report.training([self._trial(trial) for trial in wanted if self.options.only in trial.name])

    def _trial(self, trial: Trial) -> report.Done:
        found: dict[str, Any] = {}
        problem = trial.problem
        if not problem:
            try:
                found = self.worker("train", json.dumps(asdict(trial)))
            except RunError as error:
                problem = str(error)
                self.failed |= trial.engine == "ours" and problem != _LATE
        kept = report.outcome(trial, found, problem)
        record(self.lines, "trial", kept)
        said = reason(problem) if problem else f"{kept['flops'] / 1e12:.3g} TFLOP/s"
        _tell(trial.name, said)
        return trial, found, problem

    def plan(self) -> str:
        """The part's table."""
        wanted = [case for case in (TINY_PLANS if self.options.tiny else PLANS) if self.options.only in case.name]
        return table([self._case(case) for case in wanted])

    def _case(self, case: Case) -> Outcome:
        found = Outcome(case.name, error=_LATE)
        if self.seconds():
            found = run_case(case, self.folder, _TIMED, self.seconds(), device=self.options.device)
            self.failed |= bool(found.error)
        record(self.lines, "outcome", asdict(case) | asdict(found))
        good = f"peak {found.peak_error:+.1%}, step {found.step_error:+.1%}" if not found.error else ""
        _tell(case.name, good or reason(found.error))
        return found


def _tell(name: str, said: str) -> None:
    print(f"{name}: {said}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the parts, print the tables; exit code 1 where one of ours failed."""
    options = arguments()
    lines = options.out and options.out.with_name(f"{options.out.name}.jsonl")
    about = machine.describe()
    tables: list[str] = []
    with TemporaryDirectory(prefix="gpu-", dir=options.folder) as folder:
        bench = Bench(options, folder, time.monotonic() + 60 * options.minutes, lines)
        try:
            facts = bench.worker("facts")
        except RunError as error:
            sys.exit(f"the device doesn't answer: {error}")
        if facts["name"] == "cpu" and options.device != "cpu":
            sys.exit("torch finds no GPU here: --device cpu --tiny shows that everything else runs")
        record(lines, "configuration", {"options": vars(options) | {"folder": "", "out": ""}, "facts": facts} | about)
        tables.append(report.configuration(facts, about))
        room = Room(int(_OF_DEVICE * facts["free"]), int(_OF_HOST * facts["host"]))
        parts: dict[str, tuple[str, Callable[[], str]]] = {
            "links": ("Links", bench.links),
            "plan": ("Predicted and measured", bench.plan),
            "train": ("Training", partial(bench.train, room)),
        }
        for name, (title, measure) in parts.items():
            if name in options.parts:
                tables.append(f"## {title}\n\n{measure()}")
                text = "\n\n".join(tables)
                if options.out:  # after each part: the machine may be gone before the last
                    options.out.with_name(f"{options.out.name}.md").write_text(f"# One GPU\n\n{text}\n", "utf-8")
    print("\n\n".join(tables))
    sys.exit(bench.failed)


if __name__ == "__main__":
    main()
