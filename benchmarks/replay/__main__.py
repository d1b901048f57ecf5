"""Replay training steps under our spilling policies and others: python -m benchmarks.replay --help."""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from benchmarks.replay import report
from benchmarks.replay.cases import H100, TOKENS, play, settings


def main() -> None:
    """Play every setting, say how it went, and write the records, the table and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(TOKENS), metavar="NAME,...")
    parser.add_argument("--out", type=Path, default=None, help="a folder for replay.jsonl, replay.md and replay.png")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    unknown = set(options.models) - set(TOKENS)
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(TOKENS)}")
    records = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for record in pool.map(play, settings(options.models)):
            records.append(record)
            outcome = f"{record.ours.seconds:.3f} s, bound {record.bound:.3f} s" if record.ours else record.failure
            print(f"{report.name(record)}: {outcome}", file=sys.stderr, flush=True)
    text = report.configuration() + "\n" + report.table(records) + "\n"
    if any(record.ours for record in records):
        text += "\n" + report.summary(records)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        lines = [{"kind": "machine"} | asdict(H100), *({"kind": "step"} | asdict(record) for record in records)]
        (options.out / "replay.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (options.out / "replay.md").write_text(text, encoding="utf-8")
        report.plot(records, options.out / "replay.png")


if __name__ == "__main__":
    main()
