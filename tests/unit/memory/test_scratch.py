"""Memory that serves again and again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.memory.scratch import Scratch

CPU = torch.device("cpu")
WANTED = st.lists(st.tuples(st.integers(0, 99), st.sampled_from([torch.uint8, torch.bfloat16, torch.float64])))


@given(st.lists(WANTED, max_size=5))
def test_what_is_given_at_once_is_as_asked_for_and_apart(rounds: list[list[tuple[int, torch.dtype]]]) -> None:
    scratch = Scratch()
    for wanted in rounds:
        given = scratch.like([torch.empty(numel, dtype=dtype, device="meta") for numel, dtype in wanted], CPU)
        assert [(values.numel(), values.dtype, values.device) for values in given] == [(*one, CPU) for one in wanted]
        for number, values in enumerate(given):
            values.fill_(number)
        assert all((values == number).all() for number, values in enumerate(given))


def test_memory_is_taken_once() -> None:
    scratch = Scratch()
    larger, smaller = (torch.empty(numel, device="meta") for numel in (1000, 10))
    (first,) = scratch.like([larger], CPU)
    assert scratch.like([smaller, smaller], CPU)[0].untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
