"""Device memory for pages, as one range of addresses and slot by slot."""

from __future__ import annotations

import pytest
import torch

from ciuic_dist.memory.accelerator import DeviceSlab
from ciuic_dist.memory.device import HostSlab, Slab
from ciuic_dist.memory.live import LiveBytes

SLOTS, SIZE = 4, 4096


@pytest.fixture(params=["host", "device"])
def slab(request: pytest.FixtureRequest) -> Slab:
    return HostSlab(SLOTS, SIZE) if request.param == "host" else DeviceSlab(SLOTS, SIZE, torch.device("cpu"))


def test_slots_keep_their_content_apart(slab: Slab) -> None:
    for slot in range(SLOTS):
        slab.view(slot, SIZE).fill_(slot)
    assert [slab.view(slot, SIZE - slot).unique().tolist() for slot in range(SLOTS)] == [[0], [1], [2], [3]]
    assert slab.view(3, 7).numel() == 7


def test_a_slot_that_was_given_back_can_be_used_again(slab: Slab) -> None:
    slab.view(1, SIZE).fill_(1)
    slab.view(2, SIZE).fill_(2)
    slab.give_back([1])
    slab.view(1, SIZE).fill_(3)
    assert [slab.view(slot, SIZE)[-1].item() for slot in (1, 2)] == [3, 2]


def test_pages_do_not_count_as_what_operators_make(slab: Slab) -> None:
    with LiveBytes() as live:
        for slot in range(SLOTS):
            slab.view(slot, SIZE).fill_(0)
    assert live.peak == 0
