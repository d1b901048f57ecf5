"""What a checkpoint costs and how quickly it loads, by six ways: python -m benchmarks.checkpoint --help."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.checkpoint import drive, report
from benchmarks.checkpoint.drive import Limit
from benchmarks.checkpoint.names import DEEPSPEED, ENGINES
from benchmarks.checkpoint.results import Trial, figures, problem, summarize
from benchmarks.measure import machine
from benchmarks.measure.hosts import Host
from benchmarks.measure.launch import RunError, launch
from benchmarks.measure.record import reason, record
from benchmarks.measure.setting import Setting
from ciuic_dist.estimate.codec import measure_codec
from ciuic_dist.memory.budget import parse_size

_PAGE: Final = 4 << 20  # bytes, as checkpoints have them
_TINY: Final = {
    "size": "tiny",
    "budget": "16MiB",
    "sequence": 16,
    "steps": 1,
    "warmup": 1,
    "saves": 1,
    "loads": 1,
    "repetitions": 1,
    "probed": 1,
}
_HERE: Final = Host("127.0.0.1")


def arguments() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument(
        "--ways", type=lambda text: text.split(","), metavar="NAME,...", help=f"of {', '.join(ENGINES)}; default: all"
    )
    parser.add_argument("--size", default="150m", help="of llama: tiny, 30m, 150m, ...")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step over all ranks")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those")
    parser.add_argument("--saves", type=int, default=3, help="timed checkpoints of a repetition")
    parser.add_argument("--loads", type=int, default=3, help="timed loads of a repetition")
    parser.add_argument("--budget", default="400MiB", help="of a rank in the way ours-within; default: 400MiB")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--probed", type=int, default=2048, metavar="MiB", help="written and read to measure the drive")
    parser.add_argument("--seconds", type=float, default=900.0, help="that one trial may take")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a real drive; left as it was")
    parser.add_argument("--out", type=Path, help="a stem: JSON lines go to STEM.jsonl, the tables to STEM.md")
    parser.add_argument("--tiny", action="store_true", help="a model and a length that show only that it works")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(_TINY)
    if wrong := _problem(options):
        parser.error(wrong)
    options.ways = options.ways or [way for way in ENGINES if way != DEEPSPEED or find_spec("deepspeed")]
    return options


def _problem(options: argparse.Namespace) -> str | None:
    ways = options.ways or []
    unknown = [way for way in ways if way not in ENGINES]
    counts = (options.ranks, options.batch, options.steps, options.saves, options.loads, options.repetitions)
    checks = (
        (unknown, f"there is no way {', '.join(unknown)}: --ways takes {', '.join(ENGINES)}"),
        (DEEPSPEED in ways and not find_spec("deepspeed"), "deepspeed is not installed"),
        (
            min(*counts, options.probed, options.sequence - 1, options.warmup + 1) < 1,
            "--ranks, --batch, --steps, --saves, --loads, --repetitions and --probed are at least 1, --sequence 2",
        ),
        (not _is_size(options.budget), f"--budget {options.budget} is no size: give one as in 400MiB"),
        (options.batch % max(1, options.ranks), f"--batch {options.batch} can't be divided among the ranks"),
        (not options.folder.is_dir(), f"--folder: there is no {options.folder}"),
    )
    return next((message for wrong, message in checks if wrong), None)


def _is_size(text: str) -> bool:
    try:
        return parse_size(text, "device") > 0
    except ValueError:
        return False


def measure(setting: Setting, options: argparse.Namespace) -> Iterator[Limit | Trial]:
    """In each repetition the drive, then every way in turn; one that fails is left out from then on."""
    ways = list(options.ways)
    for repetition in range(options.repetitions):
        with TemporaryDirectory(prefix="checkpoint-", dir=options.folder) as folder:
            yield drive.measure(Path(folder), options.probed << 20)
        for way in list(ways):
            with TemporaryDirectory(prefix="checkpoint-", dir=options.folder) as folder:
                trial = Trial(way, repetition)
                counts = (str(options.saves), str(options.loads))
                asked = (way, json.dumps(asdict(setting)), folder, *counts, options.budget)
                try:
                    with machine.watched() as others:
                        reports = launch(
                            ("benchmarks.checkpoint.worker", *asked), setting.ranks, [_HERE], options.seconds
                        )
                except RunError as error:
                    ways.remove(way)
                    yield replace(trial, error=str(error))
                else:
                    yield replace(trial, others=others[0], **figures(reports))


def main() -> None:
    """Run, say how each trial went as it ends, print the tables; exit code 1 where ours fails or loads it wrong."""
    options = arguments()
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
    )
    lines = options.out and options.out.with_name(f"{options.out.name}.jsonl")
    about = machine.describe()
    asked = {"setting": asdict(setting), "saves": options.saves, "loads": options.loads, "budget": options.budget}
    record(lines, "configuration", {**asked, "machine": about})
    codec = measure_codec(_PAGE)
    record(lines, "codec", asdict(codec))
    limits: list[Limit] = []
    trials: list[Trial] = []
    interrupted = ""
    try:
        for measured in measure(setting, options):
            if isinstance(measured, Limit):
                limits.append(measured)
                record(lines, "limit", asdict(measured))
            else:
                trials.append(measured)
                record(lines, "trial", asdict(measured))
                _tell(measured, options.repetitions)
    except KeyboardInterrupt:
        interrupted = "ended by a signal: the tables have what was measured until then"
    summaries = summarize(trials, limits)
    for summary in summaries:
        record(lines, "summary", asdict(summary))
    parts = (
        report.configuration(setting, options.budget, about, trials),
        f"## The drive\n\n{report.limits(limits, codec)}",
        f"## Checkpoints\n\n{report.table(summaries, trials)}",
    )
    text = "\n\n".join(parts)
    print(text)
    if options.out:
        options.out.with_name(f"{options.out.name}.md").write_text(f"# Checkpoints\n\n{text}\n", "utf-8")
    sys.exit(problem(trials) or interrupted or 0)


def _tell(trial: Trial, repetitions: int) -> None:
    stalls = ", ".join(f"{save.stall:.2f}" for save in trial.saves)
    loads = ", ".join(f"{load:.2f}" for load in trial.loads)
    outcome = reason(trial.error) if trial.error else f"stalls of {stalls} s, loaded in {loads} s"
    print(f"{trial.repetition + 1}/{repetitions} {trial.way}: {outcome}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
