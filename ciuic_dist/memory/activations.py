"""What autograd saves in forward, in lower tiers until its backward.

A saved tensor is a view of a storage, and often one of several (the heads of one projection, the input of two
layers), so whole storages are stored, once each. A storage's memory is let go when it is written, and comes back
when the backward is near or asks for it. Its pages are given back when the graph is freed, with or without a backward.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ciuic_dist.memory.extent import no_room, take_slot
from ciuic_dist.memory.tier import PageError, Tier
from ciuic_dist.memory.transfer import Ticket, Transfers
from ciuic_dist.monitor.units import size_text


class ActivationStore:
    """Keeps the tensors saved under ``saving`` in ``tiers``. One thread at a time, the backward's included.

    That a transfer is through, or a graph freed, is noticed at the next call, or the next tensor saved or asked for.

    Of hooks for saved tensors only the innermost pair runs. A ``torch.utils.checkpoint`` (not reentrant) inside
    ``saving`` recomputes as ever, and its inputs are stored; ``saving`` inside a checkpointed function stores what
    the checkpoint would have recomputed, and stores it anew where the function is run again for its other parts.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        transfers: Transfers,
        *,
        page_bytes: int,
        least_bytes: int,
        bytes_under_way: int,
        device: torch.device,
        keep: Callable[[Tensor], bool],
    ) -> None:
        """Store ``device``'s storages of ``least_bytes`` and more, unless ``keep`` says that a saved tensor's stays.

        ``tiers`` have pages of ``page_bytes``; the first that has room is used. ``keep`` is for parameters, their full
        forms and their views. At most ``bytes_under_way`` wait to be written, or one storage where that is larger;
        forward waits for the oldest.
        """
        self._tiers = tiers
        self._page_bytes = page_bytes
        self._transfers = transfers
        self._least_bytes = least_bytes
        self._bytes_under_way = bytes_under_way
        self._device = device
        self._keep = keep
        self._known: weakref.WeakValueDictionary[int, _Stored] = weakref.WeakValueDictionary()  # by storage
        self._forwards: dict[int, list[SavedForward]] = {}  # by unit, oldest first
        self._writing: deque[_Stored] = deque()
        self._reading: deque[_Stored] = deque()
        # Graphs are freed anywhere, also by the garbage collector in the middle of SlotPool: that only leaves a note.
        self._freed: deque[_Slots] = deque()

    @contextmanager
    def saving(self, unit_index: int, *, leaving: int | None = None) -> Iterator[SavedForward]:
        """Store what autograd saves in here, as a part of one forward of the unit.

        ``leaving``: what would leave the tiers fewer free slots stays in memory. Without it, raises BudgetError where
        they have too few. Errors of the tiers are raised by the backward.
        """
        self._collect()
        others = [other for other in self._forwards.get(unit_index, []) if other.is_alive()]
        forward = SavedForward(unit_index, leaving, alone=not others)
        self._forwards[unit_index] = [*others, forward]
        with saved_tensors_hooks(partial(self._pack, forward), self._unpack):
            yield forward

    def keeping(self) -> AbstractContextManager[None]:
        """What autograd saves in here stays in memory, also inside ``saving``."""
        return saved_tensors_hooks(_Kept, _Kept.tensor)

    def bytes_to_store(self, values: Iterable[object]) -> int:
        """Of the tensors among ``values``, whose storages count once, if they were saved."""
        storages = (v.untyped_storage() for v in values if isinstance(v, Tensor) and self._is_worth_it(v))
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def is_overruled(self) -> bool:
        """Whether others' hooks for saved tensors are on here, such as those of ``torch.utils.checkpoint``."""
        hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return hooks is not None and getattr(hooks[0], "func", None) != self._pack

    def is_alive(self, unit_index: int) -> bool:
        """Whether a graph still needs what the unit's forwards have saved."""
        return any(forward.is_alive() for forward in self._forwards.get(unit_index, []))

    def prefetch(self, unit_index: int) -> None:
        """Begin to bring back what the unit's latest forward without a backward has saved; returns at once."""
        self._collect()
        forwards = self._forwards.get(unit_index, [])
        while forwards:
            stored = forwards[-1].unread()
            for each in stored:
                self._recall(each)
            if stored:
                return
            forwards.pop()

    def settle(self) -> None:
        """Wait for what is under way, and give back the slots of graphs that are freed."""
        while self._writing:
            self._let_go_of_oldest()
        while self._reading:
            _wait(self._reading[0].reads)
            self._reading.popleft()
        self._collect()

    def _pack(self, forward: SavedForward, tensor: Tensor) -> _Saved | _Kept:
        if not self._is_worth_it(tensor):
            return _Kept(tensor)
        self._collect()
        stored = self._known.get(tensor.untyped_storage()._cdata)
        if stored is None or not stored.is_of(tensor):
            stored = self._store(tensor, forward)
        saved = _Kept(tensor) if stored is None else _Saved(stored, tensor)
        forward.note(tensor, saved)
        return saved

    def _unpack(self, saved: _Saved | _Kept) -> Tensor:
        if isinstance(saved, _Kept):
            return saved.tensor()
        self._collect()
        stored = saved.stored
        self._recall(stored)
        restored = saved.view_of(stored.memory())
        stored.unread -= not saved.read
        saved.read = True
        if not stored.unread:
            stored.forget()
        return restored

    def _is_worth_it(self, tensor: Tensor) -> bool:
        plain = type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device == self._device
        if not plain or tensor.is_complex() or tensor.is_quantized or tensor.is_neg():
            return False  # parameters; what has more to it than its bytes
        return tensor.untyped_storage().nbytes() >= self._least_bytes and not self._keep(tensor)

    def _store(self, tensor: Tensor, forward: SavedForward) -> _Stored | None:
        """None where it has to stay."""
        storage = tensor.untyped_storage()
        name = f"activations of unit {forward.unit_index}, {tuple(tensor.shape)} of {tensor.dtype}"
        slots = self._take_slots(storage.nbytes(), name, forward.leaving)
        if slots is None:
            return None
        while self._writing and self._bytes_being_written() + storage.nbytes() > self._bytes_under_way:
            self._let_go_of_oldest()
        stored = _Stored(tensor, name, slots, self._freed)
        stored.writes = self._move(self._transfers.store, stored, _bytes_of(tensor))
        self._writing.append(stored)
        self._known[storage._cdata] = stored
        return stored

    def _recall(self, stored: _Stored) -> None:
        """See to it that the content is in memory, or on its way, and stays."""
        stored.recalled = True
        if stored.needs_fetch:
            stored.fetched = torch.empty(stored.nbytes, dtype=torch.uint8, device=self._device)
            stored.reads = self._move(self._transfers.fetch, stored, stored.fetched)
            self._reading.append(stored)

    def _move(self, move: _Move, stored: _Stored, content: Tensor) -> list[Ticket]:
        pages = content.split(self._page_bytes)
        return [
            move(tier, slot, page, f"{stored.name} page {number}")
            for number, ((tier, slot), page) in enumerate(zip(stored.slots, pages, strict=True))
        ]

    def _take_slots(self, nbytes: int, name: str, leaving: int | None) -> _Slots | None:
        count = -(-nbytes // self._page_bytes)
        wanted = count + (leaving or 0)
        if self._free_slots() < wanted:
            self.settle()  # freed graphs have theirs until the writing is through
        if self._free_slots() < wanted:
            if leaving is not None:
                return None
            raise no_room(self._tiers, f"{name} ({size_text(nbytes)})")
        return [take_slot(self._tiers, name) for _ in range(count)]

    def _free_slots(self) -> int:
        return sum(tier.pool.free_slots for tier in self._tiers)

    def _bytes_being_written(self) -> int:
        return sum(stored.nbytes for stored in self._writing)

    def _let_go_of_oldest(self) -> None:
        self._writing[0].finish_writing()
        self._writing.popleft()

    def _collect(self) -> None:
        """Take notice of what is through, without waiting."""
        while self._writing and all(ticket.done() for ticket in self._writing[0].writes):
            self._let_go_of_oldest()
        while self._reading and all(ticket.done() for ticket in self._reading[0].reads):
            self._reading.popleft()
        while self._freed:
            for tier, slot in self._freed.popleft():
                tier.pool.free(slot)


class SavedForward:
    """What one forward of a unit has saved, but for small tensors, parameters and their like."""

    def __init__(self, unit_index: int, leaving: int | None, *, alone: bool) -> None:
        """``alone``: no graph needs anything of the unit's forwards before."""
        self.unit_index = unit_index
        self.leaving = leaving
        self.alone = alone
        self.nbytes = 0
        """Of the storages that are stored, once each, also of those that another forward had saved before."""
        self.nbytes_kept = 0
        """Of those that stay in memory, since the tiers have no room."""
        self.slots = 0
        """That those which are stored take."""
        self._stored: list[weakref.ref[_Stored]] = []
        self._kept: list[weakref.ref[_Kept]] = []
        self._seen: set[int] = set()

    def note(self, tensor: Tensor, saved: _Saved | _Kept) -> None:
        """Count the tensor's storage."""
        storage = tensor.untyped_storage()
        if isinstance(saved, _Kept):
            self._kept.append(weakref.ref(saved))
            self.nbytes_kept += storage.nbytes() * self._is_new(storage._cdata)
            return
        stored = saved.stored
        self._stored.append(weakref.ref(stored))
        if self._is_new(id(stored)):  # the memory behind it is another's soon
            self.nbytes += storage.nbytes()
            self.slots += len(stored.slots)

    def is_alive(self) -> bool:
        """Whether a graph still needs something of it."""
        return any(ref() is not None for ref in self._stored) or any(ref() is not None for ref in self._kept)

    def _is_new(self, key: int) -> bool:
        known = key in self._seen
        self._seen.add(key)
        return not known

    def unread(self) -> list[_Stored]:
        """What no backward has asked for yet, what was saved last coming first."""
        return [stored for ref in reversed(self._stored) if (stored := ref()) is not None and stored.unread]


class _Stored:
    """One storage's content. It lives as long as a graph needs it or a transfer is under way, and its slots with it."""

    def __init__(self, tensor: Tensor, name: str, slots: _Slots, freed: deque[_Slots]) -> None:
        self.name = name
        self.slots = slots
        self.nbytes = tensor.untyped_storage().nbytes()
        self.source: Tensor | None = _without_graph(tensor)
        """The tensor that was saved, without its graph; None when its memory was let go."""
        self.fetched: Tensor | None = None
        self.writes: list[Ticket] = []
        self.reads: list[Ticket] = []
        self.unread = 0
        """How many saved tensors no backward has asked for yet."""
        self.recalled = False
        self._written = False
        # No exception: it knows the frames it was raised through, they the graph, and the graph this.
        self._failure: tuple[type[RuntimeError], str] | None = None
        self._origin = weakref.ref(tensor.untyped_storage())
        self._version = tensor._version
        weakref.finalize(self, freed.append, slots).atexit = False

    def is_of(self, tensor: Tensor) -> bool:
        """Whether this is what ``tensor``'s storage holds now."""
        return self._origin() is tensor.untyped_storage() and self._version == tensor._version

    @property
    def needs_fetch(self) -> bool:
        return self.source is None and self.fetched is None and self._failure is None

    def finish_writing(self) -> None:
        """Wait for it, and let the memory go unless it was recalled."""
        if error := _wait(self.writes) or self._changed():
            self._failure = (type(error), str(error))
        self.writes = []
        self._written = True
        if not self.recalled:
            self.source = None

    def memory(self) -> Tensor:
        """A tensor of the storage's bytes. Raises what went wrong in writing or reading them."""
        if self._failure is not None:
            kind, message = self._failure
            raise kind(message)
        if error := self._changed():
            raise error
        if self.source is not None:
            return self.source
        if error := _wait(self.reads):
            self.forget()
            raise error
        assert self.fetched is not None
        return self.fetched

    def forget(self) -> None:
        """Nobody asks any more, and whoever asked holds the memory; or it could not be read."""
        self.fetched = None
        self.reads = []
        self.recalled = False
        if self._written:
            self.source = None

    def _changed(self) -> RuntimeError | None:
        return None if self.source is None else _changed(self.source, self._version)


class _Saved:
    """A saved tensor as its graph holds it: a view of what is stored."""

    def __init__(self, stored: _Stored, tensor: Tensor) -> None:
        self.stored = stored
        self.read = False
        self._dtype = tensor.dtype
        self._place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        stored.unread += 1

    def view_of(self, memory: Tensor) -> Tensor:
        return torch.empty(0, dtype=self._dtype, device=memory.device).set_(memory.untyped_storage(), *self._place)


class _Kept:
    """A saved tensor that stays in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = _without_graph(tensor)  # a result holds its graph, which would hold it
        self._version = tensor._version

    def tensor(self) -> Tensor:
        """Autograd leaves the check to whoever has installed hooks."""
        if error := _changed(self._tensor, self._version):
            raise error
        return self._tensor


_Slots = list[tuple[Tier, int]]
_Move = Callable[[Tier, int, Tensor, str], Ticket]


def is_saving() -> bool:
    """Whether the operator that is running now is this file's own, not the model's."""
    return _saving.get()


_saving = ContextVar("saving", default=False)


def _without_graph(tensor: Tensor) -> Tensor:
    """The same memory and version. Those who watch the model's operators must see it: the memory may be away yet."""
    before = _saving.set(True)
    try:
        return tensor.detach()
    finally:
        _saving.reset(before)


def _changed(tensor: Tensor, version: int) -> RuntimeError | None:
    if tensor._version == version:
        return None
    return RuntimeError(
        f"one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{tuple(tensor.shape)} of {tensor.dtype} is at version {tensor._version}; expected version {version} instead"
    )


def _bytes_of(tensor: Tensor) -> Tensor:
    """The whole storage, 1-D uint8."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _wait(tickets: Iterable[Ticket]) -> PageError | None:
    """Wait for all; the first error of the tier."""
    first = None
    for ticket in tickets:
        try:
            ticket.wait()
        except PageError as error:
            first = first or error
    return first
