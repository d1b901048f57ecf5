"""Training within a budget of memory, and how it compares: python -m benchmarks.spill --help."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.measure import machine
from benchmarks.measure.launch import RunError
from benchmarks.measure.record import record
from benchmarks.measure.setting import Setting
from benchmarks.spill import cgroup, parts, report
from benchmarks.spill.results import Trial, summarize, unequal
from ciuic_dist.memory.budget import BudgetError, parse_size

PARTS: Final = ("limits", "budgets", "peers", "limited", "largest")
LARGEST: Final = ("fsdp2", "deepspeed-cpu", "deepspeed-nvme", "ours")


def arguments() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spill", description=__doc__)
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=list(PARTS),
        metavar="NAME,...",
        help="budgets measures limits too",
    )
    parser.add_argument("--size", default="150m", help="of llama: tiny, 30m, 150m, ...")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step on each rank, one micro-batch")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those; the first two are planned from")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--fractions",
        type=lambda text: [float(part) for part in text.split(",")],
        default=list(parts.FRACTIONS),
        metavar="F,...",
        help="of the peak, that budgets allow",
    )
    parser.add_argument("--seconds", type=float, default=900.0, help="that one trial may take")
    parser.add_argument("--limit", type=_size, default="2GiB", help="for the largest model, all ranks together")
    parser.add_argument("--most", type=int, default=96, help="layers of the largest model that is tried")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a real drive; left as it was")
    parser.add_argument("--out", type=Path, help="a stem: JSON lines go to STEM.jsonl, the tables to STEM.md")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}: --parts takes {', '.join(PARTS)}")
    if min(options.ranks, options.batch, options.steps, options.repetitions, options.most, options.sequence - 1) < 1:
        parser.error("--ranks, --batch, --steps, --repetitions and --most must be at least 1, --sequence at least 2")
    if not all(0 < fraction <= 1 for fraction in options.fractions):
        parser.error("--fractions must be above 0 and at most 1")
    if options.warmup < 2:
        parser.error("--warmup must be at least 2: a budget is divided after the second step")
    if not options.folder.is_dir():
        parser.error(f"--folder: there is no {options.folder}")
    return options


def _size(text: str) -> int:
    try:
        return parse_size(text, "--limit")
    except BudgetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(bench: parts.Bench, options: argparse.Namespace) -> Iterator[tuple[str, list[Trial]]]:
    """A table and the trials behind it for each part; raises RunError where ours itself can't be measured."""
    if "budgets" in options.parts:
        trials, rates = parts.budgets(bench, options.fractions)
        yield f"## Drive and memory\n\n{report.limits(rates)}", []
        summaries = summarize(trials, bench.setting.ranks, parts.UNSPILLED, rates)
        yield f"## Budgets\n\n{report.budgets(summaries, trials)}", trials
    elif "limits" in options.parts:
        yield f"## Drive and memory\n\n{report.limits([bench.rates(parts.PAGE_BYTES)])}", []
    if "peers" in options.parts:
        trials = parts.peers(bench)
        yield f"## Other engines\n\n{report.peers(summarize(trials, bench.setting.ranks), trials)}", trials
    needs_limit = [name for name in ("limited", "largest") if name in options.parts]
    if needs_limit and (missing := cgroup.unavailable()):
        yield f"## Within a limit\n\nSkipped: {missing}", []
        return
    if "limited" in needs_limit:
        trials = parts.limited(bench)
        yield f"## A third of the memory, kept by the kernel\n\n{report.limited(trials)}", trials
    if "largest" in needs_limit:
        found = [(engine, *parts.largest_model(bench, engine, options.limit, options.most)) for engine in LARGEST]
        table = report.largest(found, options.limit, options.most)
        yield f"## The largest model\n\n{table}", [trial for _, _, trials in found for trial in trials]


def main() -> None:
    """Run, say how each trial went as it ends, print the tables; exit code 1 where losses differ or ours fails."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that folders and cgroups are removed
    setting = Setting(
        model="llama",
        size=options.size,
        dtype="fp32",
        device="cpu",
        ranks=options.ranks,
        hosts="1",
        batch=options.batch * options.ranks,
        sequence=options.sequence,
        steps=options.steps,
        warmup=options.warmup,
        checkpointing=True,
    )
    lines = options.out and options.out.with_name(f"{options.out.name}.jsonl")
    about = machine.describe()
    record(lines, "configuration", {"setting": asdict(setting), "repetitions": options.repetitions, "machine": about})
    tables: list[str] = []
    trials: list[Trial] = []
    problem = ""
    with TemporaryDirectory(prefix="spill-", dir=options.folder) as folder:
        bench = parts.Bench(setting, Path(folder), options.repetitions, options.seconds, partial(record, lines))
        try:
            for table, behind in run(bench, options):
                tables.append(table)
                trials += behind
        except RunError as error:
            problem = str(error)
        except KeyboardInterrupt:
            problem = "ended by a signal: the tables have what was measured until then"
    text = "\n\n".join([report.configuration(setting, about, trials), *tables])
    print(text)
    if options.out:
        options.out.with_name(f"{options.out.name}.md").write_text(f"# Training within a budget\n\n{text}\n", "utf-8")
    different = unequal([trial for trial in trials if trial.part == "budgets"])
    sys.exit(problem or (f"losses differ from unspilled: {', '.join(different)}" if different else 0))


if __name__ == "__main__":
    main()
