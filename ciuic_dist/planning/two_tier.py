"""What a device and its link to the next tier can do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ciuic_dist.planning.trace import Op, Trace


class BudgetTooSmall(ValueError):
    """A budget in which a step can't run; ``needed`` is the smallest in bytes that would do."""

    def __init__(self, budget: int, needed: int) -> None:
        """Both in bytes."""
        super().__init__(f"{budget} bytes are too few: the smallest budget that works is {needed} bytes")
        self.needed = needed


@dataclass(frozen=True, slots=True)
class TwoTier:
    """Rates as measured, not as advertised."""

    flops: float
    """Floating-point operations a second that training reaches."""
    bandwidth: float
    """Bytes a second from and to device memory."""
    budget: int
    """Bytes of device memory."""
    up: float
    """Bytes a second from the next tier to the device."""
    down: float
    """Bytes a second from the device to the next tier."""
    duplex: bool = True
    """Whether both directions run at once."""

    def seconds(self, op: Op) -> float:
        """How long ``op`` computes: its own seconds, and the slower of arithmetic and memory (roofline)."""
        return op.seconds + max(op.flops / self.flops, op.touched / self.bandwidth)

    def room(self, trace: Trace) -> int:
        """Bytes left for the items of ``trace``. Raises BudgetTooSmall where one of its operations can't run."""
        room = self.budget - trace.transient
        if room < trace.largest:
            raise BudgetTooSmall(self.budget, trace.transient + trace.largest)
        return room

    def to_json(self) -> str:
        """Text that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TwoTier:
        """A machine from `to_json`. Raises TypeError where it is none."""
        return cls(**json.loads(text))
