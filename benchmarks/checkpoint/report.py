"""What a reader sees: the configuration and the tables, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from benchmarks.checkpoint.drive import Limit
from benchmarks.checkpoint.names import ENGINES
from benchmarks.checkpoint.results import Summary, Trial
from benchmarks.measure.machine import in_words
from benchmarks.measure.record import markdown, reason
from benchmarks.measure.setting import Setting
from ciuic_dist.compress.worth import CodecRates, outruns

_MB, _GB = 1e6, 1e9


def configuration(setting: Setting, budget: str, machine: dict[str, Any], trials: Sequence[Trial]) -> str:
    """The lines above the tables."""
    parameters = max((trial.parameters for trial in trials), default=0) / 1e6
    busiest = max((trial.others for trial in trials), default=0.0)
    return f"""\
* {setting.model} {setting.size}, {parameters:.1f} M parameters, {setting.dtype}, AdamW, stage {setting.stage} of \
ours and DeepSpeed; the other ways save FSDP2's
* {setting.ranks} ranks of one thread, {setting.batch} sequences of {setting.sequence} tokens a step over all ranks
* {setting.steps} steps timed after {setting.warmup}; one more step, save and load sampled for memory; \
seed {setting.seed}
{in_words(machine)}
* other processes kept at most {busiest:.2f} cores busy during a trial
* ours-within: a budget of {budget} a rank, the rest on the drive
* stall: training stands still, in the call and in the steps after it; slowed: what these take longer besides; \
durable: from the call until all is on the drive, by fsync; loads are from the drive, not from the page \
cache, and of its read is what it took alone for the same files just before each of them
"""


def limits(measured: Sequence[Limit], codec: CodecRates) -> str:
    """What drive and codec can do, a line a repetition, and from how many cores on compression would pay."""
    titles = ("repetition", "write, GB/s", "read, GB/s", "page cache", "compression pays from")
    rows = [
        [
            str(number + 1),
            f"{limit.write / _GB:.2f}",
            f"{limit.read / _GB:.2f}",
            "left out" if limit.direct else "used",
            f"{_cores(codec, limit)} cores",
        ]
        for number, limit in enumerate(measured)
    ]
    rates = f"A core compresses {codec.encode / _GB:.2f} GB/s and makes {codec.decode / _GB:.2f} GB/s whole again."
    return f"{markdown(titles, rows)}\n\n{rates}"


def _cores(codec: CodecRates, limit: Limit) -> int:
    return next(cores for cores in count(1) if outruns(codec, cores, write=limit.write, read=limit.read))


def table(summaries: Sequence[Summary], trials: Sequence[Trial]) -> str:
    """All ways; those that failed have the reason."""
    titles = (
        "way",
        "engine",
        "stall, s: median (longest)",
        "of a step",
        "of dcp-async's",
        "slowed, s",
        "durable, s",
        "MB",
        "GB/s",
        "of the drive's write",
        "load, s",
        "GB/s",
        "of the drive's read",
        "more memory saving, MB",
        "loading, MB",
        "loss after loading",
        "saves",
    )
    failures = [[trial.way, f"failed: {reason(trial.error)}"] for trial in trials if trial.error]
    return markdown(titles, [_row(summary) for summary in summaries] + failures)


def _row(each: Summary) -> list[str]:
    return [
        each.way,
        ENGINES[each.way],
        f"{each.stall:.3f} ({each.longest:.3f})",
        f"{each.of_step:.1%}",
        "" if each.to_async is None else f"{each.to_async:.2f}",
        f"{each.slowed:.2f}",
        f"{each.durable:.2f}",
        f"{each.bytes / _MB:.0f}",
        f"{each.write / _GB:.2f}",
        f"{each.of_write:.0%}",
        f"{each.load:.2f}",
        f"{each.read / _GB:.2f}",
        f"{each.of_read:.0%}",
        f"{each.more_saving / _MB:.0f}",
        f"{each.more_loading / _MB:.0f}",
        f"off by {each.off:.1e}" if each.off else "the same",
        str(each.saves),
    ]
