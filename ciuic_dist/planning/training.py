"""What is to be trained and how, whatever it runs on; and one way to do it."""

from __future__ import annotations

from dataclasses import dataclass

from ciuic_dist.planning.activations import Way

STATE_BYTES = {"fp32": 8.0, "8bit": 2.0 * (1 + 4 / 128)}
"""Of a parameter: two moments; in 8 bits each has a scale of fp32 for 128 elements."""


@dataclass(frozen=True, slots=True)
class Training:
    """What the user asks for."""

    sequences: int
    """Of a step, over all ranks."""
    length: int
    """Tokens of a sequence."""
    precision: str = "bf16"
    state_dtype: str = "fp32"
    clips: bool = True
    """Gradients are clipped: no parameter changes before the last gradient is there."""

    @property
    def weight(self) -> int:
        """Bytes of a parameter as the model computes with it, and of its gradient as it comes."""
        return 2 if self.precision == "bf16" else 4

    @property
    def gradient(self) -> int:
        """Bytes of a reduced gradient."""
        return 4

    @property
    def state(self) -> float:
        """Bytes of a parameter that only the optimizer looks at: moments, and the lower half of an fp32 master."""
        return STATE_BYTES[self.state_dtype] + (2 if self.precision == "bf16" else 0)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.sequences * self.length


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to train it."""

    stage: int
    micro_batch: int
    accumulation: int
    """Micro-batches of a step on each rank."""
    ways: tuple[Way, ...]
    """What becomes of the activations of each unit, the root excepted."""
    below: bool = False
    """Activations that aren't kept lie in a lower tier; else what they are recomputed from stays on the device."""
    gathered: int = 0
    """At stage 3: so many of the last units stay full from their forward to the update."""
    group: int | None = None
    """So many ranks shard among themselves, and each such group has a replica; None: all ranks are one."""

    @property
    def divided(self) -> bool:
        """On the device alone, some units keep their activations and the others compute them again."""
        return not self.below and len(set(self.ways)) > 1

    def ranks(self, world: int) -> int:
        """So many shard among themselves, or at stage 0 add up gradients."""
        return self.group or world

    def shards(self, world: int) -> int:
        """In how many parts what is sharded is."""
        return self.ranks(world) if self.stage else 1

    def way(self, unit: int) -> Way:
        """What becomes of the activations of one unit; the root, which is the last, keeps its own."""
        return self.ways[unit] if unit < len(self.ways) else Way.KEEP
