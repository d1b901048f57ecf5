"""What a rank has moved between its tiers, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ciuic_dist.monitor.units import duration_text, size_text


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What has gone over one link; in each of ``seconds`` at least one transfer was under way."""

    bytes: int = 0
    count: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Such as 12.00 MiB in 48 transfers, under way for 1.20 s."""
        return f"{size_text(self.bytes)} in {self.count} transfers, under way for {duration_text(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Spilling:
    """Moves between tiers: since the start, or ``since`` an earlier look. ``links`` by name, such as "device->nvme".

    ``accesses`` to spilled state and gradients: ``hits`` found the page on the device, ``faults`` had to begin its
    fetch; ``unforeseen`` were not in the order of the steps before. ``stall_seconds`` were spent waiting.
    ``guesses`` of the next unit were made where a forward or backward doesn't go as the ones before, ``right`` of them
    were right.
    """

    links: dict[str, LinkStats] = field(default_factory=dict)
    stall_seconds: float = 0.0
    accesses: int = 0
    hits: int = 0
    faults: int = 0
    unforeseen: int = 0
    steps: int = 0
    guesses: int = 0
    right: int = 0

    @property
    def hit_rate(self) -> float:
        """Of the accesses; 1 where there were none."""
        return self.hits / self.accesses if self.accesses else 1.0

    @property
    def guess_rate(self) -> float:
        """Of the guesses, how many were right; 1 where there were none."""
        return self.right / self.guesses if self.guesses else 1.0

    @property
    def nvme_bytes(self) -> int:
        """Bytes written to NVMe on this rank: what wears a drive."""
        return self.links.get("device->nvme", LinkStats()).bytes

    @property
    def nvme_bytes_per_step(self) -> float:
        """The same a step."""
        return self.nvme_bytes / self.steps if self.steps else 0.0

    def since(self, before: Spilling) -> Spilling:
        """What has moved after ``before`` was taken."""
        return Spilling(
            {name: _difference(link, before.links.get(name, LinkStats())) for name, link in self.links.items()},
            self.stall_seconds - before.stall_seconds,
            self.accesses - before.accesses,
            self.hits - before.hits,
            self.faults - before.faults,
            self.unforeseen - before.unforeseen,
            self.steps - before.steps,
            self.guesses - before.guesses,
            self.right - before.right,
        )


def _difference(now: LinkStats, before: LinkStats) -> LinkStats:
    return LinkStats(now.bytes - before.bytes, now.count - before.count, now.seconds - before.seconds)
