"""The same training under each engine, in turns, and how they compare: python -m benchmarks.engines --help."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engines import report
from benchmarks.engines.results import Run, run_of, summarize
from benchmarks.measure import hosts as places
from benchmarks.measure import machine
from benchmarks.measure.launch import ROOT, RunError, launch
from benchmarks.measure.record import record
from benchmarks.measure.setting import ENGINES, Setting

IMAGE = ROOT / "docs" / "images" / "engines.png"


def arguments() -> tuple[argparse.Namespace, Setting]:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--model", default="llama", help="a family of ciuic_dist.models: llama, deepseek, ...")
    parser.add_argument("--size", default="150m", help="tiny and 150m of both; llama also 30m, 1b, ...")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=None, metavar="NAME,...")
    parser.add_argument("--ranks", type=int, default=None, help="default: 2, on GPUs 1; plain always runs as 1")
    parser.add_argument("--hosts", choices=places.KINDS, default="1", help="forced: one, without shared memory in ours")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2, 3], default=3, help="of ours and DeepSpeed")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step over all ranks")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one engine's run")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    parser.add_argument("--plot", type=Path, nargs="?", const=IMAGE, help="draw a PNG (default: %(const)s)")
    options = parser.parse_args()
    if options.ranks is None:
        options.ranks = 1 if options.device == "cuda" else 2
    options.engines = options.engines or [name for name in ENGINES if name != "deepspeed" or find_spec(name)]
    if problem := _problem(options):
        parser.error(problem)
    names = {field.name for field in fields(Setting)}
    return options, Setting(**{name: value for name, value in vars(options).items() if name in names})


def _problem(options: argparse.Namespace) -> str | None:
    unknown = [name for name in options.engines if name not in ENGINES]
    counts = (options.ranks, options.batch, options.steps, options.reps, options.sequence - 1, options.warmup + 1)
    checks = (
        (unknown, f"there is no engine {', '.join(unknown)}: --engines takes {', '.join(ENGINES)}"),
        (
            "deepspeed" in options.engines and not find_spec("deepspeed"),
            "deepspeed is not installed: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed",
        ),
        (
            min(counts) < 1,
            "--ranks, --batch, --steps and --reps must be at least 1, --sequence at least 2, --warmup at least 0",
        ),
        (
            options.batch % max(1, options.ranks),
            f"--batch {options.batch} can't be divided among {options.ranks} ranks: give a multiple",
        ),
        (
            options.hosts == "2" and options.ranks % 2,
            f"--hosts 2 needs an even number of ranks, not {options.ranks}",
        ),
    )
    return next((message for wrong, message in checks if wrong), None)


def measure(setting: Setting, engines: list[str], repetitions: int, limit: float) -> Iterator[Run]:
    """Every engine in turn, `repetitions` times; one that fails is left out from then on."""
    failed: set[str] = set()
    with places.hosts(setting.hosts) as hosts:
        for repetition in range(repetitions):
            for engine in (name for name in engines if name not in failed):
                command = ("benchmarks.engines.worker", engine, json.dumps(asdict(setting)))
                try:
                    with machine.watched() as others:
                        reports = launch(command, setting.world(engine), hosts, limit, device=setting.device)
                except RunError as error:
                    failed.add(engine)
                    yield Run(engine, repetition, error=str(error))
                    continue
                yield run_of(engine, repetition, setting, reports, hosts=len(hosts), others=others[0])


def main() -> None:
    """Run, say how each run went as it ends, and print the table; exit code 1 where an engine failed."""
    options, setting = arguments()
    about = machine.describe()
    record(options.out, "configuration", {"setting": asdict(setting), "repetitions": options.reps, "machine": about})
    runs = []
    try:
        for run in measure(setting, options.engines, options.reps, options.limit):
            runs.append(run)
            record(options.out, "run", asdict(run))
            outcome = run.error or f"{run.tokens_per_second:.1f} tokens/s, loss {run.losses[-1]:.6f}"
            print(f"{run.repetition + 1}/{options.reps} {run.engine}: {outcome}", file=sys.stderr, flush=True)
    except places.HostsError as error:
        sys.exit(str(error))
    summaries = summarize(runs, setting.ranks)
    for summary in summaries:
        record(options.out, "summary", asdict(summary))
    print(f"{report.configuration(setting, about, runs)}\n{report.table(summaries, runs, setting)}")
    if options.plot and summaries:
        report.plot(summaries, setting, options.plot)
    sys.exit(any(run.error for run in runs))


if __name__ == "__main__":
    main()
