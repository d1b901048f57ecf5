"""What the trainings show: a table, and a picture of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.measure.record import markdown
from ciuic_dist.config import flatten

LAST = 20
"""Steps whose mean loss is the final one."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training: losses of each step and ``validations`` by step, in nats a token; bytes ``used`` at the end."""

    kind: str
    seed: int
    config: dict[str, Any]
    losses: list[float]
    validations: dict[int, float]
    used: int

    @property
    def final(self) -> float:
        """Mean loss of the last steps."""
        return mean(self.losses[-LAST:])


def configuration(runs: Sequence[Run], about: Mapping[str, Any]) -> str:
    """The machine and all settings that the runs have in common."""
    differ = {"optimizer.state_dtype", "train.seed", "run.folder", "run.name"}
    settings = {key: value for key, value in flatten(runs[0].config).items() if key not in differ}
    return "\n".join(
        [
            "# 8-bit optimizer state beside fp32\n",
            "* " + ", ".join(f"{key} {value}" for key, value in about.items()),
            "* " + ", ".join(f"{key}={value}" for key, value in settings.items()),
            f"* One process. Losses in nats a token; training: the mean of the last {LAST} steps. Not a timing.",
            "",
        ]
    )


def table(runs: Sequence[Run]) -> str:
    """A line a run, and under each 8-bit one how far it is from the fp32 one before it."""
    titles = ["state", "seed", "training loss", "validation loss", "bytes used"]
    rows = []
    for before, run in pairwise([None, *runs]):
        assert run is not None
        rows.append([run.kind, str(run.seed), f"{run.final:.4f}", f"{_validation(run):.4f}", f"{run.used:,}"])
        if before is not None and before.seed == run.seed:
            off, held_out = run.final - before.final, _validation(run) - _validation(before)
            rows.append(
                ["difference", str(run.seed), f"{off:+.4f}", f"{held_out:+.4f}", f"{run.used - before.used:+,}"]
            )
    return markdown(titles, rows)


def _validation(run: Run) -> float:
    return run.validations[max(run.validations)]


def plot(runs: Sequence[Run], path: Path) -> None:
    """Losses over steps, and below how far 8-bit state is from fp32 with the same seed, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    curves, gaps = FigureCanvasAgg(figure).figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    exact = {run.seed: run for run in runs if run.kind == "fp32"}
    for run in runs:
        steps = range(1, len(run.losses) + 1)
        style = "-" if run.kind == "fp32" else "--"
        color = f"C{2 * run.seed + (run.kind != 'fp32')}"
        curves.plot(steps, run.losses, style, color=color, label=f"{run.kind}, seed {run.seed}", linewidth=1)
        curves.plot(list(run.validations), list(run.validations.values()), "o", color=color, markersize=4)
        if run.kind != "fp32":
            gap = [ours - theirs for ours, theirs in zip(run.losses, exact[run.seed].losses, strict=True)]
            gaps.plot(steps, gap, color=color, linewidth=1)
    curves.set(ylabel="loss (nats a token); dots: validation", title="fp32 and 8-bit optimizer state")
    curves.legend()
    gaps.set(xlabel="step", ylabel="8-bit less fp32")
    for axes in (curves, gaps):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
