from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ciuic_dist.memory.ram import RamTier
from ciuic_dist.memory.transfer import Transfers
from tests.unit.memory.stored import PAGE, SLOTS, Block


@pytest.fixture
def transfers() -> Iterator[Transfers]:
    transfers = Transfers(2, timeout=60.0)
    yield transfers
    transfers.close()


@pytest.fixture
def tier() -> RamTier:
    return RamTier("host", PAGE, SLOTS)


@pytest.fixture
def model() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([Block(), Block(), Block()])
