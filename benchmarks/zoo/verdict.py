"""How close a training came to the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.zoo.training import Training

Status = Literal["identical", "differs", "crash", "timeout"]


@dataclass(frozen=True, slots=True)
class Job:
    """One architecture to train with one engine at one stage on `world` ranks."""

    name: str
    engine: str
    stage: int
    world: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a job; differences are the largest absolute ones, None where nothing was trained."""

    job: Job
    status: Status
    loss_difference: float | None = None
    parameter_difference: float | None = None
    worst: str = ""  # the parameter that differs most
    parameters: int = 0
    seconds: float = 0.0
    error: str = ""

    def within(self, tolerance: float) -> bool:
        """Bit-identical, or trained with no difference above `tolerance`."""
        differences = (self.loss_difference, self.parameter_difference)
        return self.status == "identical" or all(d is not None and d <= tolerance for d in differences)


def compare(job: Job, ours: Training, reference: Training, seconds: float) -> Verdict:
    """ValueError if a parameter is missing or has another shape."""
    differences: dict[str, float] = {}
    identical = ours.losses == reference.losses
    for name, expected in reference.parameters.items():
        if name not in ours.parameters:
            raise ValueError(f"the parameter {name} was not returned")
        value = ours.parameters[name]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise ValueError(f"{name} came back as {value.dtype}{list(value.shape)}, not {list(expected.shape)}")
        identical = identical and torch.equal(value, expected)
        differences[name] = (value - expected).abs().max().item() if value.numel() else 0.0
    loss_difference = max(
        abs(a - b)
        for row, other in zip(ours.losses, reference.losses, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    worst = max(differences, key=lambda name: differences[name])
    return Verdict(
        job=job,
        status="identical" if identical else "differs",
        loss_difference=loss_difference,
        parameter_difference=differences[worst],
        worst="" if identical else worst,
        parameters=sum(value.numel() for value in reference.parameters.values()),
        seconds=seconds,
    )
