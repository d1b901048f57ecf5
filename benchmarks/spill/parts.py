"""The parts of the benchmark: which cases, in which order, within what."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import machine
from benchmarks.measure.hosts import Host
from benchmarks.measure.launch import RunError, launch
from benchmarks.measure.record import reason
from benchmarks.measure.setting import Setting
from benchmarks.spill import cgroup
from benchmarks.spill.bound import Rates
from benchmarks.spill.case import ENGINES, Case
from benchmarks.spill.results import Trial, figures
from benchmarks.spill.search import largest

FRACTIONS: Final = (1.0, 0.5, 0.33, 0.2)
UNSPILLED: Final = "unspilled"
PAGE_BYTES: Final = 4 << 20  # as the engine has them for budgets of 768 MiB and more
_HERE: Final = Host("127.0.0.1")
_PROBED: Final = 256 << 20  # bytes that each rank writes and reads to measure the drive
_SLACK: Final = 24 << 20  # bytes of each rank, at least, for what grows beside its budget: stacks, buffers, kernels


@dataclass(slots=True)
class Bench:
    """What all parts share; `keep` is called with every record as it comes."""

    setting: Setting
    folder: Path
    repetitions: int
    seconds: float  # that one trial may take
    keep: Callable[[str, dict[str, Any]], None]
    worker: str = "benchmarks.spill.worker"
    _peak: int = 0
    _baselines: dict[str, int] = field(default_factory=dict)

    def trial(self, part: str, case: Case, repetition: int = 0, setting: Setting | None = None) -> Trial:
        """One trial without a limit."""
        return self._tell(self._train(part, case, repetition, setting or self.setting, _HERE))

    def limited(self, part: str, case: Case, limit: int, setting: Setting | None = None) -> Trial:
        """One trial in a cgroup of `limit` bytes."""
        with cgroup.limited(limit) as group:
            trial = self._train(part, case, 0, setting or self.setting, group.host)
            return self._tell(replace(trial, limit=limit, charged=group.peak, kills=group.kills))

    def _train(self, part: str, case: Case, repetition: int, setting: Setting, host: Host) -> Trial:
        trial = Trial(part, case.name, repetition, device_budget=case.device)
        command = (self.worker, json.dumps(asdict(case)), json.dumps(asdict(setting)))
        try:
            with machine.watched() as others:
                reports = launch(command, setting.world(case.engine), [host], self.seconds)
        except RunError as error:
            return replace(trial, error=str(error))
        return replace(trial, others=others[0], **figures(setting, reports))

    def _tell(self, trial: Trial) -> Trial:
        self.keep("trial", asdict(trial))
        killed = f"; the kernel killed {trial.kills}" if trial.kills else ""
        outcome = reason(trial.error) if trial.error else f"{trial.tokens_per_second:.1f} tokens/s"
        print(f"{trial.part}: {trial.case}: {outcome}{killed}", file=sys.stderr, flush=True)
        return trial

    def peak(self) -> int:
        """Bytes of a rank that trains with memory to spare. Raises RunError.

        Parameters, gradients and state of a run without a budget, and the activations and temporary values that a
        run counts whose budget is never reached.
        """
        if not self._peak:
            short = replace(self.setting, warmup=2, steps=1)
            room = machine.memory() // (2 * self.setting.ranks)
            for case in (Case(UNSPILLED, "ours", str(self.folder)), Case("counted", "ours", str(self.folder), room)):
                trial = self.trial("peak", case, setting=short)
                if trial.error:
                    raise RunError(trial.error)
                self._peak += trial.transient if case.device else trial.device_peak
            self.keep("peak", {"bytes_of_a_rank": self._peak})
        return self._peak

    def baseline(self, engine: str) -> int:
        """Bytes of all ranks before there is a model. Raises RunError; compiles what the engine needs compiled."""
        if engine not in self._baselines:
            command = ("benchmarks.spill.prelude", engine, json.dumps(asdict(self.setting)))
            lean = Host(_HERE.address, environment=cgroup.LEAN)
            reports = launch(command, self.setting.world(engine), [lean], self.seconds)
            self._baselines[engine] = sum(report["baseline"] for report in reports)
            self.keep("baseline", {"engine": engine, "bytes": self._baselines[engine]})
        return self._baselines[engine]

    def rates(self, page_bytes: int) -> Rates:
        """Of drive and memory, all ranks together. Raises RunError."""
        command = ("benchmarks.spill.rates", str(self.folder), str(page_bytes), str(_PROBED))
        reports = launch(command, self.setting.ranks, [_HERE], self.seconds)
        rates = Rates(**{name: sum(report[name] for report in reports) for name in reports[0]})
        self.keep("rates", {"page_bytes": page_bytes} | asdict(rates))
        return rates


def budgets(bench: Bench, fractions: Sequence[float]) -> tuple[list[Trial], list[Rates]]:
    """Ours within each part of its peak, in turn with itself unspilled; a budget that is refused is not tried again."""
    peak, folder = bench.peak(), str(bench.folder)
    cases = [Case(UNSPILLED, "ours", folder)]
    cases += [Case(f"{fraction:.0%}", "ours", folder, int(fraction * peak)) for fraction in fractions]
    trials: list[Trial] = []
    rates: list[Rates] = []
    for repetition in range(bench.repetitions):
        for case in list(cases):
            trials.append(bench.trial("budgets", case, repetition))
            if trials[-1].error:
                cases.remove(case)
        pages = [trial.page_bytes for trial in trials if trial.page_bytes]
        rates.append(bench.rates(min(pages, default=PAGE_BYTES)))
    return trials, rates


def peers(bench: Bench) -> list[Trial]:
    """Every engine in turn, ours within a third of its peak and without a budget."""
    folder = str(bench.folder)
    cases = [Case("ours, 33%", "ours", folder, int(0.33 * bench.peak()))]
    trials: list[Trial] = []
    for engine in ENGINES:
        try:
            bench.baseline(engine)  # what it needs compiled is compiled before anything is timed
        except RunError as error:
            trials.append(Trial("peers", engine, error=str(error)))
        else:
            cases.append(Case(engine, engine, folder))
    for repetition in range(bench.repetitions):
        for case in list(cases):
            trials.append(bench.trial("peers", case, repetition))
            if trials[-1].error:
                cases.remove(case)
    return trials


def _budget(share: int) -> int:
    """What a rank may use of its share of a limit."""
    return max(0, share - max(_SLACK, share // 10))


def limited(bench: Bench) -> list[Trial]:
    """Every engine once, within a third of the memory that training takes, and what libraries take."""
    share = int(0.33 * bench.peak())
    trials = []
    for engine in ENGINES:
        device = _budget(share) if engine == "ours" else None
        case = Case(engine, engine, str(bench.folder), device, partitioned=True)
        try:
            limit = bench.baseline(engine) + bench.setting.ranks * share
        except RunError as error:
            trials.append(Trial("limited", engine, error=str(error)))
            continue
        trials.append(bench.limited("limited", case, limit))
    return trials


def largest_model(bench: Bench, engine: str, memory: int, most: int) -> tuple[int, list[Trial]]:
    """Most layers, up to `most`, that train two steps within `memory` bytes beside the libraries; all trials."""
    short = replace(bench.setting, batch=bench.setting.ranks, warmup=0, steps=1)
    device = _budget(memory // short.ranks) if engine == "ours" else None
    trials: list[Trial] = []
    try:
        limit = bench.baseline(engine) + memory
    except RunError as error:
        return 0, [Trial("largest", engine, error=str(error))]

    def fits(layers: int) -> bool:
        case = Case(f"{engine}, {layers} layers", engine, str(bench.folder), device, partitioned=True)
        trials.append(bench.limited("largest", case, limit, replace(short, layers=layers)))
        return not trials[-1].error

    return largest(fits, 4, most, 0.1), trials
