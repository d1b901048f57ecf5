"""Train the zoo with each engine and compare with plain PyTorch: python -m benchmarks.zoo --help."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.zoo.catalogue import select
from benchmarks.zoo.engines import ENGINES, installed
from benchmarks.zoo.report import cell, line, table
from benchmarks.zoo.sweep import LIMIT, sweep
from benchmarks.zoo.verdict import Job, Verdict


def words(text: str) -> list[str]:
    """`a,b` as ["a", "b"]."""
    return [word for word in text.split(",") if word]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--only", type=words, default=[], metavar="NAME,...", help="these architectures (default: all)")
    parser.add_argument("--engines", type=words, default=list(ENGINES), help="of ours,fsdp2,deepspeed (default: all)")
    parser.add_argument("--stages", type=words, default=["1", "2", "3"], help="ZeRO stages of ours; peers run stage 3")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one architecture and stage")
    parser.add_argument("--out", type=Path, default=Path(os.devnull), help="write JSON lines here")
    options = parser.parse_args()
    unknown = sorted(set(options.engines) - set(ENGINES))
    if unknown:
        parser.error(f"no engine is called {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    return options


def main() -> None:
    """Run, show each result as it comes, and the table at the end."""
    options = arguments()
    try:
        entries = {entry.name: entry for entry in select(options.only)}
    except ValueError as error:
        sys.exit(str(error))
    verdicts: list[Verdict] = []
    with options.out.open("w") as out:
        for engine in options.engines:
            if not installed(engine):
                print(f"{engine} is left out: it is not installed", file=sys.stderr)
                continue
            stages = [int(stage) for stage in options.stages] if engine == "ours" else [3]
            jobs = [Job(name, engine, stage, options.ranks) for name in entries for stage in stages]
            for verdict in sweep(jobs, options.limit):
                verdicts.append(verdict)
                print(line(verdict), file=out, flush=True)
                print(f"{engine} {verdict.job.stage} {verdict.job.name}: {cell(verdict)}", file=sys.stderr)
    print(table(verdicts, entries))


if __name__ == "__main__":
    main()
