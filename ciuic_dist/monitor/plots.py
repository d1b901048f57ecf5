"""The loss plot of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ciuic_dist.monitor import metrics

if TYPE_CHECKING:
    from pathlib import Path


def plot_losses(metrics_path: Path, image_path: Path) -> None:
    """Draw training and validation loss over the steps of a metrics file as a PNG.

    ``image_path`` is replaced at once, so a viewer never sees half of it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training: list[tuple[int, float]] = []
    validation: list[tuple[int, float]] = []
    for record in metrics.read(metrics_path):
        training.append((record["step"], _number(record["loss"])))
        if "validation_loss" in record:
            validation.append((record["step"], _number(record["validation_loss"])))

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    axes.plot(*_columns(training), label="training", linewidth=1)
    axes.plot(*_columns(validation), label="validation", marker="o", markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=image_path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()

    draft = image_path.with_name(image_path.name + ".partial")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(image_path)


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # a gap in the curve


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [loss for _, loss in points]
