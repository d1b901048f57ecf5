"""Compare the planner's verdicts and step times with published ones: python -m benchmarks.published."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.measure.record import markdown, record
from benchmarks.published.cases import CASES, Case
from ciuic_dist.config import ModelConfig
from ciuic_dist.estimate.workload import causal_batch, profiles
from ciuic_dist.models.build import build
from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.choices import Limits
from ciuic_dist.planning.forecast import DoesNotFit
from ciuic_dist.planning.profile import Profile
from ciuic_dist.planning.search import search
from ciuic_dist.planning.training import Training

_WITHIN: Final = 0.25


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the planner says; `tokens` a second of one device."""

    case: str
    fits: bool
    right: bool
    tokens: float | None = None
    published: float | None = None
    limit: str = ""

    @property
    def off(self) -> float | None:
        """Of the step time, as a part of the published one."""
        return None if self.tokens is None or self.published is None else self.published / self.tokens - 1


def judge(case: Case) -> Verdict:
    """What the planner says of one."""
    profile = _profile(case)
    world = case.machine.world
    training = Training(case.micro_batch * case.accumulation * world, case.length, clips=True)
    limits = Limits(case.stage, case.micro_batch, Way.KEEP, case.recompute, world)
    try:
        found = search(lambda _: profile, case.machine, training, limits).forecast
    except DoesNotFit:
        return Verdict(case.name, fits=False, right=not case.fits)
    right = case.fits and (case.spills or not found.spilled.total)
    return Verdict(case.name, True, right, training.tokens / found.seconds / world, case.tokens, found.limit)


def _profile(case: Case) -> Profile:
    overrides = tuple(sorted(case.fields.items()))
    return _traced(case.family, overrides, case.length, case.micro_batch)


@cache
def _traced(family: str, overrides: tuple[tuple[str, object], ...], length: int, micro_batch: int) -> Profile:
    fields = dict(overrides) | ({} if family == "gpt2" else {"max_position_embeddings": length})
    model = build(ModelConfig(family, "tiny", overrides=fields), vocab_size=None, seed=0)
    return profiles(model, causal_batch(length), precision="bf16", fused_attention=True, most=micro_batch)(micro_batch)


def rows(verdicts: list[Verdict]) -> Iterator[list[str]]:
    """Of the table."""
    for case, verdict in zip(CASES, verdicts, strict=True):
        tokens = "" if verdict.tokens is None else f"{verdict.tokens:,.0f}"
        published = "" if case.tokens is None else f"{case.tokens:,.0f}"
        off = "" if verdict.off is None else f"{verdict.off:+.0%}"
        fits = ("yes" if verdict.fits else "no") + ("" if verdict.right else " (wrong)")
        yield [case.name, fits, tokens, published, off, verdict.limit, case.note, case.source]


def main() -> None:
    """Judge all, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("--out", type=Path, help="a stem: JSON lines go to STEM.jsonl, the table to STEM.md")
    options = parser.parse_args()
    verdicts = [judge(case) for case in CASES]
    titles = [
        "training",
        "fits",
        "tokens/s of a device: planner",
        "published",
        "step off by",
        "limit",
        "note",
        "source",
    ]
    timed = [verdict.off for verdict in verdicts if verdict.off is not None]
    near = sum(abs(off) <= _WITHIN for off in timed)
    text = (
        f"{markdown(titles, list(rows(verdicts)))}\n\n"
        f"* verdict right: {sum(verdict.right for verdict in verdicts)} of {len(verdicts)}\n"
        f"* step time within {_WITHIN:.0%}: {near} of {len(timed)}"
    )
    print(text)
    if options.out:
        for case, verdict in zip(CASES, verdicts, strict=True):
            record(
                options.out.with_name(f"{options.out.name}.jsonl"), "verdict", asdict(verdict) | {"source": case.source}
            )
        options.out.with_name(f"{options.out.name}.md").write_text(f"# Published trainings\n\n{text}\n", "utf-8")
    sys.exit(0)


if __name__ == "__main__":
    main()
