"""Which trials there are, in which order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Final

from benchmarks.frontier.cases import OURS, Case, Planned, of_peers
from benchmarks.frontier.measured import Measured
from benchmarks.measure.hosts import Host
from benchmarks.measure.launch import RunError, launch
from benchmarks.measure.record import reason
from benchmarks.spill.case import OPERATORS
from benchmarks.spill.parts import Bench
from benchmarks.spill.results import Trial

_HERE: Final = Host("127.0.0.1")


def run(bench: Bench, names: Sequence[str], fractions: Sequence[float], measured: Measured) -> None:
    """Plan if ours is among `names`, then measure. Raises RunError where there is no plan to be had."""
    folder = str(bench.folder)
    if OURS in names:
        measured.plans += planned(bench, fractions)
    cases = [case_of(plan, folder) for plan in measured.plans if plan.plan is not None]
    for trial in trials(bench, [*cases, *of_peers(names, folder)]):
        measured.trials.append(trial)


def planned(bench: Bench, fractions: Sequence[float]) -> list[Planned]:
    """Ours without a budget and within each. Raises RunError."""
    command = (
        "benchmarks.frontier.planner",
        json.dumps(asdict(bench.setting)),
        json.dumps(fractions),
        str(bench.folder),
    )
    reports = launch(command, bench.setting.ranks, [_HERE], bench.seconds)
    plans = [Planned(**plan) for plan in reports[0]["plans"]]
    for plan in plans:
        bench.keep("plan", asdict(plan))
        said = (
            reason(plan.error) if plan.plan is None else f"{plan.plan['predicted']['tokens_per_second']:.1f} tokens/s"
        )
        print(f"planned: {plan.case}: {said}", file=sys.stderr, flush=True)
    return plans


def case_of(plan: Planned, folder: str) -> Case:
    """Ours by a plan that there is."""
    recompute = plan.plan is not None and plan.plan["recompute"]
    return Case(plan.case, OURS, folder, device=plan.device, checkpointing=recompute, plan=json.dumps(plan.plan))


def trials(bench: Bench, cases: Sequence[Case]) -> Iterator[Trial]:
    """Every case in turn, `bench.repetitions` times; one that fails is left out from then on."""
    left = list(cases)
    for case in cases:
        if case.engine in OPERATORS:  # compiled before anything is timed
            try:
                bench.baseline(case.engine)
            except RunError as error:
                left.remove(case)
                yield Trial(case.engine, case.name, error=str(error))
    for repetition in range(bench.repetitions):
        for case in list(left):
            setting = replace(bench.setting, checkpointing=case.checkpointing)
            trial = bench.trial(case.engine, case, repetition, setting)
            if trial.error:
                left.remove(case)
            yield trial
