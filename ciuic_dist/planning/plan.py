"""The plan of a run: what was chosen, what it takes, and how it was made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ciuic_dist.planning.activations import Way
from ciuic_dist.planning.machine import Machine
from ciuic_dist.planning.training import Choice, Training


class PlanError(ValueError):
    """A plan that is for something else; says what."""


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """What happens to one unit."""

    name: str
    parameters: int
    """Elements."""
    gathered: bool
    """It stays full from its forward to the update."""
    activations: Way


@dataclass(frozen=True, slots=True)
class Prediction:
    """One rank's step. Bytes and seconds."""

    seconds: float
    in_memory_seconds: float
    """Of the best choice if the devices had memory to spare."""
    bound: float
    limit: str
    """The resource that bounds it."""
    tokens_per_second: float
    """Over all ranks."""
    peak: dict[str, int]
    """By tier."""
    stalls: float
    """Seconds of waiting for transfers between tiers."""
    traffic: dict[str, float]
    """Bytes by link."""
    resources: dict[str, float]
    """Seconds by resource."""

    @property
    def of_in_memory(self) -> float:
        """Speed as a part of that with memory to spare."""
        return self.in_memory_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class Advice:
    """What one change of the machine would bring."""

    change: str
    gain: float
    """By which part of itself the speed would grow."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run needs to know. Equal plans have equal text."""

    model: str
    machine: Machine
    training: Training
    stage: int
    micro_batch: int
    accumulation: int
    spills: bool
    """A budget is needed: ``device`` bytes of each device, ``host`` and ``nvme`` of each node."""
    device: int
    host: int
    nvme: int
    recompute: bool
    """All blocks' activations are computed again, from inputs that stay on the device."""
    units: tuple[UnitPlan, ...]
    residency: dict[str, dict[str, int]]
    """Bytes of one rank, by kind and tier."""
    predicted: Prediction
    advice: tuple[Advice, ...] = ()
    group: int | None = None
    """So many ranks shard among themselves, and each such group has a replica; None: all ranks are one."""

    def __str__(self) -> str:
        """All of it in words, over several lines."""
        from ciuic_dist.planning.report import describe

        return describe(self)

    def to_json(self) -> str:
        """Text that `from_json` reads back."""
        return json.dumps(asdict(self) | {"digest": self.digest}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """A plan from `to_json`. Raises KeyError, TypeError or ValueError where it is none, or was changed since."""
        fields: dict[str, Any] = json.loads(text)
        digest = fields.pop("digest")
        fields["machine"] = Machine(**fields["machine"])
        fields["training"] = Training(**fields["training"])
        fields["units"] = tuple(
            UnitPlan(**unit | {"activations": Way(unit["activations"])}) for unit in fields["units"]
        )
        fields["predicted"] = Prediction(**fields["predicted"])
        fields["advice"] = tuple(Advice(**entry) for entry in fields["advice"])
        plan = cls(**fields)
        if plan.digest != digest:
            raise ValueError("it was changed after it was made")
        return plan

    @property
    def choice(self) -> Choice:
        """What was chosen, as the cost model takes it."""
        ways = tuple(unit.activations for unit in self.units[:-1])
        below = bool(self.host or self.nvme) and not self.recompute and any(way is not Way.KEEP for way in ways)
        gathered = sum(unit.gathered for unit in self.units[:-1]) if self.stage == 3 else 0
        return Choice(self.stage, self.micro_batch, self.accumulation, ways, below, gathered, self.group)

    @property
    def way(self) -> tuple[Choice, bool]:
        """Equal for plans that train alike."""
        return self.choice, self.spills

    @property
    def digest(self) -> str:
        """Equal for equal plans: what ranks agree on."""
        fields = asdict(self)
        if self.group is None:  # as plans were that knew no groups
            del fields["group"]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
