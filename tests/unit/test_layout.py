from __future__ import annotations

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from ciuic_dist.sharding.layout import ALIGNMENT, SHARD_MULTIPLE, boxes, divide, lay_out

shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)


@given(st.lists(shapes, max_size=12), st.integers(1, 7))
def test_shards_hold_every_element_once(parameters: list[tuple[int, ...]], world: int) -> None:
    layout = lay_out([(str(i), shape) for i, shape in enumerate(parameters)], world)
    seen = [0] * len(parameters)
    for rank in range(world):
        end = 0
        for piece in layout.pieces(rank):
            assert piece.start == seen[piece.index], "pieces of a parameter follow each other over the ranks"
            assert piece.shard_offset >= end, "pieces don't overlap"
            end = piece.shard_offset + piece.numel
            assert end <= layout.shard_numel
            assert piece.shard_offset % ALIGNMENT == 0
            slot = layout.slots[piece.index]
            assert slot.offset + piece.start == rank * layout.shard_numel + piece.shard_offset
            seen[piece.index] = piece.stop
    assert seen == [prod(shape) for shape in parameters]
    assert layout.shard_numel % SHARD_MULTIPLE == 0


@given(shapes, st.data())
def test_boxes_tile_a_range(shape: tuple[int, ...], data: st.DataObject) -> None:
    total = prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    source = torch.arange(total).view(shape)
    rebuilt: list[int] = []
    for box in boxes(shape, start, stop):
        assert box.start == len(rebuilt)
        part = source
        for dimension, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
            part = part.narrow(dimension, offset, size)
        rebuilt += part.reshape(-1).tolist()
    assert rebuilt == list(range(start, stop))


@given(shapes, st.data())
def test_boxes_are_few(shape: tuple[int, ...], data: st.DataObject) -> None:
    total = prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    assert len(list(boxes(shape, start, stop))) <= max(1, 2 * len(shape) - 1)


@given(st.lists(st.integers(0, 20), max_size=20), st.integers(0, 40))
def test_runs_hold_everything_in_order(sizes: list[int], least: int) -> None:
    runs = list(divide(sizes, least))
    assert [index for run in runs for index in range(run.start, run.stop)] == list(range(len(sizes)))
    assert all(run.stop > run.start for run in runs)
    if len(runs) > 1:
        assert all(sum(sizes[run]) >= least for run in runs)
    for run in runs[:-1]:
        assert sum(sizes[run][:-1]) < max(least, 1), "a run ends as soon as it has enough"
