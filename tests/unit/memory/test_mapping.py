"""Private memory begins where huge pages do."""

from __future__ import annotations

import pytest

from ciuic_dist.memory.mapping import HUGE_PAGE, private


@pytest.mark.parametrize("nbytes", [HUGE_PAGE, 2 * HUGE_PAGE + 8192 + 64, 5 * HUGE_PAGE])
def test_large_private_memory_begins_at_a_huge_page_and_ends_where_it_should(nbytes: int) -> None:
    for memory in [private(nbytes) for _ in range(4)]:
        assert memory.data_ptr() % HUGE_PAGE == 0
        assert memory.untyped_storage().nbytes() == memory.numel() == nbytes
        assert memory.fill_(7)[-1] == 7
