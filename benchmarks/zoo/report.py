"""The results for people (a Markdown table) and for programs (JSON lines)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.verdict import Verdict


def line(verdict: Verdict) -> str:
    """One JSON object."""
    fields = asdict(verdict)
    return json.dumps(fields.pop("job") | fields)


def cell(verdict: Verdict) -> str:
    """`=` for bit-identical, the largest difference, or how it failed."""
    if verdict.status == "identical":
        return "="
    if verdict.status == "differs":
        return f"{max(verdict.loss_difference or 0.0, verdict.parameter_difference or 0.0):.0e}"
    last = verdict.error.strip().splitlines()[-1:] if verdict.status == "crash" else []
    return " ".join([verdict.status, *(text.split(":")[0].split(".")[-1][:30] for text in last)])


def table(verdicts: Sequence[Verdict], entries: Mapping[str, Entry]) -> str:
    """Architectures down, engines and stages across, and the sums below."""
    columns = list(dict.fromkeys((verdict.job.engine, verdict.job.stage) for verdict in verdicts))
    cells = {(v.job.name, v.job.engine, v.job.stage): v for v in verdicts}
    rows = [["architecture", "kind", *(f"{engine} {stage}" for engine, stage in columns)], ["---"] * (2 + len(columns))]
    for name in dict.fromkeys(verdict.job.name for verdict in verdicts):
        found = [cells.get((name, *column)) for column in columns]
        rows.append([name, entries[name].kind, *("" if verdict is None else cell(verdict) for verdict in found)])
    for title, tolerance in (("bit-identical", 0.0), ("within 1e-6", 1e-6), ("within 1e-4", 1e-4)):
        tried = [[v for v in verdicts if (v.job.engine, v.job.stage) == column] for column in columns]
        sums = [f"{sum(v.within(tolerance) for v in found)} of {len(found)}" for found in tried]
        rows.append([f"**{title}**", "", *sums])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
