"""What `print(cd.status(model))` shows."""

from __future__ import annotations

from ciuic_dist.monitor.spilling import LinkStats, Spilling
from ciuic_dist.monitor.usage import TierUsage
from ciuic_dist.status import Status

MIB = 1 << 20


def test_a_model_within_a_budget_says_where_its_bytes_are_and_what_that_cost() -> None:
    moved = Spilling(
        {"device->nvme": LinkStats(12 * MIB, 48, 1.2)}, 0.04, 200, 196, unforeseen=1, steps=3, guesses=4, right=3
    )
    tiers = {"device": TierUsage(3 * MIB, 4 * MIB, 1 << 30), "nvme": TierUsage(512, 1536, 2**31)}
    ways = {"keep": 4, "offload": 0, "recompute": 2}
    assert str(Status(tiers, 6, 5 * MIB, 8, 7 * MIB, moved, ways, 3 * MIB)).splitlines() == [
        "device         3.00 MiB of 1.00 GiB (peak 4.00 MiB)",
        "nvme           0.50 KiB of 2.00 GiB (peak 1.50 KiB)",
        "beyond device  3.00 MiB that the heap loses to gaps or libraries have",
        "gathered       5.00 MiB in 6 gathers",
        "reduced        7.00 MiB in 8 reductions",
        "device->nvme   12.00 MiB in 48 transfers, under way for 1.20 s",
        "stalls         40.0 ms in 3 steps",
        "pages in time  98% of 200, 1 not foreseen",
        "units guessed  75% of 4 rightly",
        "drive wear     4.00 MiB written a step",
        "activations    keep 4 units, recompute 2 units",
    ]


def test_what_there_was_none_of_is_left_out() -> None:
    ways = {"keep": 0, "offload": 0, "recompute": 0}
    shown = str(Status({"device": TierUsage(1 << 10, 2 << 10)}, 0, 0, 0, 0, Spilling(), ways))
    assert shown == "device         1.00 KiB (peak 2.00 KiB)"
