"""What a reader sees: the configuration, the points, the plans and a line for each peer, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.frontier.cases import Planned
from benchmarks.frontier.results import Point, Verdict, points, verdicts
from benchmarks.measure.machine import in_words
from benchmarks.measure.record import markdown, reason
from benchmarks.measure.setting import Setting
from benchmarks.spill.results import Trial

_MB = 1e6


def text(setting: Setting, machine: dict[str, Any], plans: Sequence[Planned], trials: Sequence[Trial]) -> str:
    """All of it."""
    found = points(trials, setting.ranks)
    parts = [configuration(setting, machine, trials), table(found, trials)]
    if plans:  # without ours there is nothing to compare
        parts.append(f"## Plans\n\n{planned(plans)}")
        parts.append(f"## At each peer's memory\n\n{compared(verdicts(found))}")
    return "\n\n".join(parts)


def configuration(setting: Setting, machine: dict[str, Any], trials: Sequence[Trial]) -> str:
    """The lines above the tables."""
    parameters = max((trial.parameters for trial in trials), default=0) / 1e6
    busiest = max((trial.others for trial in trials), default=0.0)
    return f"""\
* {setting.model} {setting.size}, {parameters:.1f} M parameters, {setting.dtype}, AdamW, no clipping
* {setting.ranks} ranks of one thread (plain PyTorch: one), {setting.batch} sequences of {setting.sequence} tokens a \
step over all ranks; peers in one micro-batch each, ours as planned
* {setting.steps} steps timed after {setting.warmup}, one more sampled for memory; seed {setting.seed}
{in_words(machine)}
* other processes kept at most {busiest:.2f} cores busy during a trial
* memory: the peak of the ranks' summed PSS, less what interpreter, libraries and data take before there is a model
* ours, so many percent: within that part of what the plan without a budget takes
* the limit is linear scaling: ranks times the tokens/s of plain PyTorch in one process of one thread"""


def table(found: Sequence[Point], trials: Sequence[Trial]) -> str:
    """A line a case; those that failed have the reason."""
    titles = ("case", "memory, MB", "tokens/s: median (min..max)", "of the limit", "loss, off plain's by", "runs")
    rows = [
        [
            point.case,
            f"{point.memory / _MB:.0f}",
            f"{point.tokens_per_second:.1f} ({point.slowest:.1f}..{point.quickest:.1f})",
            "" if point.of_limit is None else f"{point.of_limit:.0%}",
            "" if point.loss_off is None else f"{point.loss_off:.0e}",
            str(point.runs),
        ]
        for point in found
    ]
    rows += ([trial.case, f"failed: {reason(trial.error)}"] for trial in trials if trial.error)
    return markdown(titles, rows)


def planned(plans: Sequence[Planned]) -> str:
    """What was chosen for each budget, and what was predicted of it."""
    titles = (
        "case",
        "budget of a rank, MB",
        "predicted peak of a rank, MB",
        "predicted tokens/s",
        "stage",
        "micro-batches",
        "activations of the units",
    )
    return markdown(titles, [_plan(each) for each in plans])


def _plan(each: Planned) -> list[str]:
    budget = "none" if each.device is None else f"{each.device / _MB:.0f}"
    if each.plan is None:
        return [each.case, budget, f"refused: {reason(each.error)}"]
    plan, predicted = each.plan, each.plan["predicted"]
    ways = Counter(unit["activations"] for unit in plan["units"][:-1])  # the last is the root
    return [
        each.case,
        budget,
        f"{predicted['peak']['device'] / _MB:.0f}",
        f"{predicted['tokens_per_second']:.1f}",
        str(plan["stage"]),
        f"{plan['accumulation']} of {plan['micro_batch']}",
        ", ".join(f"{count} {way}" for way, count in ways.items()),
    ]


def compared(found: Sequence[Verdict]) -> str:
    """A line a peer, and whether ours is nowhere below."""
    lines = [_line(each) for each in found]
    reached = sum(each.times is not None and each.times >= 1 for each in found)
    return "\n".join([*lines, f"* at or above {reached} of {len(found)}"])


def _line(verdict: Verdict) -> str:
    peer = verdict.peer
    where = f"* at {peer.case}'s memory ({peer.memory / _MB:.0f} MB, {peer.tokens_per_second:.1f} tokens/s)"
    if verdict.ours is None:
        return f"{where} there is none of ours: all take more"
    return f"{where} {verdict.ours.case} has {verdict.ours.tokens_per_second:.1f} tokens/s: {verdict.times:.2f} times"
