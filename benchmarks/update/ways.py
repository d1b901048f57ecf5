"""Where AdamW runs for state that lies in the host's memory: on the device, on the CPU, or on both at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ciuic_dist.planning.machine import Machine

HOST_PEAK: Final = {
    "h100": (307e9, "8 channels of DDR5-4800"),
    "8xh100": (614e9, "2 sockets of 8 channels of DDR5-4800, for 8 devices"),
    "64xh100": (614e9, "the same in each node"),
    "8xa100": (410e9, "2 sockets of 8 channels of DDR4-3200, for 8 devices"),
    "rtx4090": (83e9, "2 channels of DDR5-5200"),
    "gb200-nvl72": (36 * 512e9, "36 Grace with LPDDR5X, for 72 devices"),
}
"""Bytes a second of a node's memory, as advertised."""
REACHED: Final = 0.8
"""Of that, in long reads and writes (J. McCalpin, STREAM)."""


@dataclass(frozen=True, slots=True)
class Way:
    """Bytes of a parameter: on the link in each direction, and of the host's memory, where both sides count."""

    up: float
    down: float
    memory: float

    def mixed(self, other: Way, part: float) -> Way:
        """This way for all but ``part`` of the parameters."""
        mine = 1 - part
        return Way(
            mine * self.up + part * other.up,
            mine * self.down + part * other.down,
            mine * self.memory + part * other.memory,
        )

    def seconds(self, machine: Machine, memory: float) -> float:
        """Of a parameter, at the full rate of what bounds it; ``memory``: bytes a second for one device."""
        return max(self.up / machine.up, self.down / machine.down, self.memory / memory)


STREAMED: Final = Way(up=10, down=10, memory=20)
"""The lower half of an fp32 master and two moments come and go; weight and gradient are on the device."""
ON_CPU: Final = Way(up=2, down=4, memory=4 + 28 + 4)
"""The gradient (fp32) comes down and the weight (bf16) goes up, each written and read; AdamW touches 7 values of fp32.

The host keeps whole masters for that, 2 bytes a parameter more.
"""


@dataclass(frozen=True, slots=True)
class Split:
    """The quickest mixture."""

    part: float
    """Of the parameters, on the CPU."""
    seconds: float
    """Of one."""


def best_split(machine: Machine, memory: float) -> Split:
    """A linear program of one variable: its optimum lies where two bounds meet, or at an end."""
    bounds = [
        (STREAMED.up / machine.up, ON_CPU.up / machine.up),
        (STREAMED.down / machine.down, ON_CPU.down / machine.down),
        (STREAMED.memory / memory, ON_CPU.memory / memory),
    ]
    parts = {0.0, 1.0}
    for index, (one, one_ends) in enumerate(bounds):
        for other, other_ends in bounds[:index]:
            apart, closing = other - one, (one_ends - one) - (other_ends - other)
            if closing and 0 < apart / closing < 1:
                parts.add(apart / closing)
    seconds = {part: STREAMED.mixed(ON_CPU, part).seconds(machine, memory) for part in sorted(parts)}
    best = min(seconds, key=seconds.__getitem__)
    return Split(best, seconds[best])
