"""What is stored lies below as a whole or not at all."""

from __future__ import annotations

import pytest
import torch

from ciuic_dist.memory.budget import BudgetError
from ciuic_dist.memory.extent import Extent
from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.transfer import Transfers

PAGE = 4096


def test_what_does_not_fit_takes_nothing() -> None:
    tier = RamTier("host", PAGE, 2)
    transfers = Transfers(1, timeout=60.0)
    try:
        with pytest.raises(BudgetError, match=r"no tier has room for weights.*now host 8\.00 KiB for this rank"):
            Extent("weights", [tier], transfers).store([torch.zeros(PAGE, dtype=torch.uint8)] * 3)
    finally:
        transfers.close()
    assert tier.pool.free_slots == 2
