"""What a rank writes of a sharded model.

Each rank writes its pieces; what several hold alike is shared out by a rule that needs no word between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ciuic_dist.checkpoint.names import EXTRA, EXTRA_STATE, GROUPS, KIND, MODEL, SCALARS
from ciuic_dist.checkpoint.spans import Span
from ciuic_dist.comm.groups import rank, world_size
from ciuic_dist.optim.paged import PagedOptimizer, StateValues
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.registry import sharded_of


def spans_of(model: nn.Module, optimizer: PagedOptimizer | None) -> Iterator[Span]:
    """The masters, and the state that is as large, that this rank writes."""
    flats = sharded_of(model).flats
    mine = _written_here(flats)
    for flat in flats:
        if id(flat) in mine:
            spans = [(*span, None) for span in flat.spans()] if optimizer is None else optimizer.spans_of(flat)
            for low, high, part in spans:
                yield Span(flat, low, high, part, None if optimizer is None else optimizer.inner)


def small_entries(
    model: nn.Module, optimizer: PagedOptimizer | None, extra: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """What else this rank writes, by name: tensors, and what is to be pickled."""
    if optimizer is not None:
        yield from _scalars(optimizer, _written_here(sharded_of(model).flats))
    if rank() == 0:
        kind, groups = (None, []) if optimizer is None else (kind_of(optimizer), optimizer.settings())
        yield from rank_zeros_entries(model, kind, groups, extra)


def rank_zeros_entries(
    model: nn.Module, kind: str | None, groups: Iterable[dict[str, Any]], extra: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """What counts is rank 0's; ``kind`` of optimizer, if there is one, and the settings of its ``groups``."""
    yield from persistent_buffers(model).items()
    yield from ((name, (value,)) for name, value in extra_states(model).items())  # a tuple: no tensor by itself
    yield from ((f"{GROUPS}{number}", group) for number, group in enumerate(groups))
    if kind is not None:
        yield KIND + kind, None
    yield EXTRA, dict(extra)


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are saved."""
    persistent = model.state_dict(keep_vars=True)
    return {f"{MODEL}{name}": buffer for name, buffer in model.named_buffers() if name in persistent}


def extra_states(model: nn.Module) -> dict[str, Any]:
    """What the modules' get_extra_state gives."""
    state = model.state_dict(keep_vars=True).items()
    return {f"{MODEL}{name}": value for name, value in state if name.rpartition(".")[2] == EXTRA_STATE}


def kind_of(optimizer: PagedOptimizer) -> str:
    """The name of the class whose state it is."""
    return type(optimizer.inner).__name__


def share_out(sizes: Iterable[int], ranks: int) -> list[int]:
    """Which rank writes each of things of these sizes, so that all write about as much: the largest first.

    >>> share_out([5, 9, 4], 2)
    [1, 0, 1]
    """
    numbered = sorted(enumerate(sizes), key=lambda item: (-item[1], item[0]))
    loads = [0] * ranks
    writers = [0] * len(numbered)
    for number, size in numbered:
        writers[number] = loads.index(min(loads))
        loads[writers[number]] += size
    return writers


def _scalars(optimizer: PagedOptimizer, mine: set[int]) -> Iterator[tuple[str, Any]]:
    """From the rank that has a parameter's first element."""
    for flat, piece, state in optimizer.piece_states():
        if id(flat) in mine and piece.start == 0:
            for key, value in state.items():
                if not isinstance(value, StateValues):
                    yield f"{SCALARS}{flat.layout.slots[piece.index].name}.{key}", value


def _written_here(flats: Sequence[Flat]) -> set[int]:
    """The ids of those whose shards this rank writes: what several ranks hold alike is shared out among them."""
    shards = flats[0].layout.world
    writers = share_out([flat.layout.numel * flat.master_dtype.itemsize for flat in flats], world_size() // shards)
    return {id(flat) for flat, writer in zip(flats, writers, strict=True) if writer == rank() // shards}
