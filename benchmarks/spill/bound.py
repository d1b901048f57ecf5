"""What a step takes at least where the model doesn't fit, whatever the policy. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

_WEIGHT, _STATE = 4, 8  # bytes of a parameter in fp32, and of AdamW's two moments


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second, of all ranks together; `both` is reading and writing at once, `copy` from memory to memory."""

    read: float
    write: float
    both: float
    copy: float


@dataclass(frozen=True, slots=True)
class Moves:
    """Bytes that all ranks must move in a step at least."""

    read: int
    written: int

    @classmethod
    def least(cls, parameters: int, room: int) -> Self:
        """`room`: bytes that all ranks have for parameters and state.

        A parameter that doesn't fit is read for the forward and for the backward and written once; its state is read
        and written once. So the room is best given to parameters first: they move three times, state twice.
        """
        weights = _WEIGHT * parameters
        weights_out = max(0, weights - room)
        state_out = max(0, _STATE * parameters - max(0, room - weights))
        return cls(read=2 * weights_out + state_out, written=weights_out + state_out)

    def seconds(self, rates: Rates, computing: float) -> float:
        """The longest of `computing` seconds, reading, writing, and both at their common rate."""
        return max(
            computing,
            self.read / rates.read,
            self.written / rates.write,
            (self.read + self.written) / rates.both,
        )
