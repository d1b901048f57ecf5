"""What a reader sees: the configuration and a table for each part, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.measure.machine import in_words
from benchmarks.measure.record import markdown, reason
from benchmarks.measure.setting import Setting
from benchmarks.spill.bound import Rates
from benchmarks.spill.results import Summary, Trial

_MB, _GB = 1e6, 1e9


def configuration(setting: Setting, machine: dict[str, Any], trials: Sequence[Trial]) -> str:
    """The lines above the tables."""
    parameters = max((trial.parameters for trial in trials if trial.part != "largest"), default=0) / 1e6
    busiest = max((trial.others for trial in trials), default=0.0)
    return f"""\
* {setting.model} {setting.size}, {parameters:.1f} M parameters, fp32, activation checkpointing, AdamW, no clipping
* {setting.ranks} ranks of one thread (plain PyTorch: one), {setting.batch} sequences of {setting.sequence} tokens a \
step over all ranks, in one micro-batch each
* {setting.steps} steps timed after {setting.warmup}, one more sampled for memory; seed {setting.seed}
{in_words(machine)}
* other processes kept at most {busiest:.2f} cores busy during a trial
* within the kernel's limits the C library of every engine gives back at once what is freed (MALLOC_MMAP_THRESHOLD_)
* memory is in MB (10^6 bytes), of all ranks together unless it says otherwise
"""


def limits(rates: Sequence[Rates]) -> str:
    """What was measured of drive and memory, a line a repetition."""
    titles = ("repetition", "read, GB/s", "write, GB/s", "both at once, GB/s", "memory copy, GB/s")
    rows = [
        [str(index + 1), *(f"{rate / _GB:.2f}" for rate in (each.read, each.write, each.both, each.copy))]
        for index, each in enumerate(rates)
    ]
    return markdown(titles, rows)


def budgets(summaries: Sequence[Summary], trials: Sequence[Trial]) -> str:
    """Ours by its budget."""
    titles = (
        "budget",
        "tokens/s: median (min..max)",
        "of unspilled",
        "s a step",
        "bound, s",
        "bound / measured",
        "device of a rank: peak / budget",
        "peak PSS",
        "read from disk a step",
        "written a step",
        "stall, s a step",
        "faults",
        "hit rate",
        "last loss",
    )
    rows = [[*_speed(each), *_bound(each), *_memory(each), *_moves(each.last)] for each in summaries]
    return markdown(
        titles,
        [[*row, f"{each.last.losses[-1]:.9g}"] for row, each in zip(rows, summaries, strict=True)] + _failures(trials),
    )


def peers(summaries: Sequence[Summary], trials: Sequence[Trial]) -> str:
    """All engines; ours is compared by its first case."""
    titles = (
        "engine",
        "tokens/s: median (min..max)",
        "ours / it",
        "peak PSS",
        "ours / it",
        "peak RSS of a rank",
        "read from disk a step",
        "written a step",
        "last loss",
    )
    ours = next((each for each in summaries if each.case.startswith("ours")), None)
    rows = [
        [
            *_speed(each)[:2],
            _ratio(ours.tokens_per_second / each.tokens_per_second if ours else None),
            f"{each.memory / _MB:.0f}",
            _ratio(ours.memory / each.memory if ours else None),
            f"{each.last.peak_rss / _MB:.0f}",
            f"{each.last.disk_read / _MB:.0f}",
            f"{each.last.disk_written / _MB:.0f}",
            f"{each.last.losses[-1]:.6f}",
        ]
        for each in summaries
    ]
    return markdown(titles, rows + _failures(trials))


def limited(trials: Sequence[Trial]) -> str:
    """What became of each engine within the kernel's limit."""
    titles = ("engine", "limit", "charged at most", "what happened", "tokens/s", "device of a rank: peak / budget")
    rows = [
        [
            trial.case,
            "" if trial.limit is None else f"{trial.limit / _MB:.0f}",
            f"{trial.charged / _MB:.0f}",
            outcome(trial),
            "" if trial.error else f"{trial.tokens_per_second:.1f}",
            "" if trial.device_budget is None else f"{trial.device_peak / _MB:.0f} / {trial.device_budget / _MB:.0f}",
        ]
        for trial in trials
    ]
    return markdown(titles, rows)


def largest(found: Sequence[tuple[str, int, Sequence[Trial]]], memory: int, most: int) -> str:
    """The largest model of each engine, and what became of the smallest that was too large."""
    titles = (
        "engine",
        f"layers within {memory / 2**30:.2f} GiB",
        "M parameters",
        "to FSDP2",
        "s a step",
        "the next one",
    )
    sizes = {engine: _largest_trial(trials) for engine, _, trials in found}
    fsdp2 = sizes.get("fsdp2")
    rows = []
    for engine, layers, trials in found:
        best, failed = sizes[engine], [trial for trial in trials if trial.error]
        rows.append(
            [
                engine,
                f"at least {layers}" if layers == most else str(layers),
                f"{best.parameters / 1e6:.0f}" if best else "",
                f"{best.parameters / fsdp2.parameters:.1f}" if best and fsdp2 else "",
                f"{best.seconds:.1f}" if best else "",
                f"{failed[-1].case.partition(', ')[2]}: {outcome(failed[-1])}" if failed else "",
            ]
        )
    return markdown(titles, rows)


def outcome(trial: Trial) -> str:
    """One phrase."""
    if trial.kills:
        return f"killed by the kernel (SIGKILL, out of memory; processes: {trial.kills})"
    return f"failed: {reason(trial.error)}" if trial.error else "trained"


def _largest_trial(trials: Sequence[Trial]) -> Trial | None:
    return max((trial for trial in trials if not trial.error), key=lambda trial: trial.parameters, default=None)


def _failures(trials: Sequence[Trial]) -> list[list[str]]:
    return [[trial.case, f"failed: {reason(trial.error)}"] for trial in trials if trial.error]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _speed(summary: Summary) -> list[str]:
    speed = f"{summary.tokens_per_second:.1f} ({summary.slowest:.1f}..{summary.quickest:.1f})"
    return [summary.case, speed, _percent(summary.of_unspilled)]


def _bound(summary: Summary) -> list[str]:
    return [f"{summary.seconds:.2f}", _ratio(summary.bound), _percent(summary.of_bound)]


def _memory(summary: Summary) -> list[str]:
    last = summary.last
    device = "" if last.device_budget is None else f"{last.device_peak / _MB:.0f} / {last.device_budget / _MB:.0f}"
    return [device, f"{summary.memory / _MB:.0f}"]


def _moves(trial: Trial) -> list[str]:
    return [
        f"{trial.links.get('nvme->device', 0) / _MB:.0f}",
        f"{trial.links.get('device->nvme', 0) / _MB:.0f}",
        f"{trial.stall_seconds:.2f}",
        str(trial.faults),
        f"{trial.hit_rate:.1%}",
    ]
