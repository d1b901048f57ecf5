"""The first steps of a planned run: what they take is compared with the plan, and may make a better one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import mean, median
from typing import Final

from ciuic_dist.comm.groups import gather_objects
from ciuic_dist.estimate.calls import Seen
from ciuic_dist.estimate.observe import Observer
from ciuic_dist.memory.live import LiveBytes
from ciuic_dist.monitor import metrics
from ciuic_dist.monitor.expected import Expected, compared
from ciuic_dist.planning.plan import Plan

SETTLING: Final = 3
"""Steps that tell nothing of time: memory is divided after the second, and in two of them operators are watched."""
_COUNTED: Final = 2
"""The step whose activations are counted."""
_OBSERVED: Final = 3
"""The step whose operators are timed."""
JUDGED: Final = 8
"""The step after which the plan is judged."""
_OFF: Final = 0.05
"""By which part of the prediction it may be wrong."""

Replan = Callable[[Plan, Seen], Plan]
"""The best plan, now that it is known how long operators take; the one there is, unless another is worth a change."""


class Watch:
    """Follows a run from its start, or from where it was resumed. Every rank has one and calls the same."""

    def __init__(self, plan: Plan, replan: Replan | None, *, looks: bool, counts: bool) -> None:
        """``replan``: None where the plan is kept whatever comes.

        ``looks``: operators can be watched, as on the CPU; ``counts``: and what they make, which nothing else counts.
        """
        self.plan = plan
        self.better: Plan | None = None
        """Another way to train that is worth a change."""
        self.activations: int | None = None
        """Bytes of the step that counted them."""
        self._replan = replan if looks else None
        self._counts = looks and counts
        self._steps = 0
        self._seconds: list[float] = []
        self._live: LiveBytes | None = None
        self._observer: Observer | None = None

    def looking(self) -> AbstractContextManager[object]:
        """To be entered for the first micro-batch of each step: gradients that wait later are counted elsewhere."""
        self._steps += 1
        if self._counts and self._steps == _COUNTED:
            self._live = LiveBytes()
            return self._live
        if self._replan and self._steps == _OBSERVED:
            self._observer = Observer()
            return self._observer
        return nullcontext()

    def judge(self, seconds: float) -> str | None:
        """A step took so long; what there is to say of it."""
        if self._live is not None:
            self.activations, self._live = self._live.peak, None
        if self._steps > SETTLING:
            self._seconds.append(seconds)
        if self._replan is None or self._observer is None or self._steps != JUDGED:
            return None
        observer, self._observer = self._observer, None
        return self._judged(self._replan, observer)

    def _judged(self, replan: Replan, observer: Observer) -> str | None:
        measured = mean(gather_objects(median(self._seconds)))
        predicted = self.plan.predicted.seconds
        if abs(measured / predicted - 1) <= _OFF:
            return None
        words = f"a step takes {measured:.3f} s where {predicted:.3f} s were predicted"
        plan = replan(self.plan, observer.seen())
        words += f"; with operators as they took here {plan.predicted.seconds:.3f} s are"
        if plan.way == self.plan.way:
            self.plan = plan
            return f"{words}, and the plan stays"
        self.better = plan
        return f"{words} for another plan: going on with that from a checkpoint"


def expected(plan: Plan) -> Expected:
    """What ``plan`` says of a rank's step."""
    predicted = plan.predicted
    return Expected(
        plan.training.tokens,
        predicted.seconds,
        predicted.stalls,
        predicted.peak,
        predicted.traffic.get("up", 0.0),
        predicted.traffic.get("down", 0.0),
    )


def comparison(watch: Watch, metrics_path: Path, first: int) -> str:
    """The plan beside the steps of the metrics after step ``first`` and the settling, in a few lines."""
    steps = (step for step in metrics.read(metrics_path) if step["step"] > first + SETTLING)
    rows = compared(expected(watch.plan), steps, watch.activations)
    if not rows:
        return "too few steps to compare with the plan"
    return "\n".join(["of a step of rank 0       predicted    measured", *map(str, rows)])
