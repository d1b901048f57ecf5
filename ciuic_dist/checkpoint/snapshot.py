"""Values as they were at one moment, written while the model trains on, without a copy of all of them.

A span changes only in an update. What can be read beside the computation a thread writes. What that hasn't come to when
its update is near, and what has to be paged in, is open in its update anyway: there the training thread copies a span
of a few pages, for the other to write, and writes itself what is larger, or finds the other some copies behind.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

from ciuic_dist.checkpoint.copies import Copy, Rooms
from ciuic_dist.checkpoint.pieces import BoxedPiece
from ciuic_dist.checkpoint.spans import Span
from ciuic_dist.checkpoint.writing import RankWriter
from ciuic_dist.comm.groups import timeout_seconds
from ciuic_dist.sharding.flat import Flat


class Snapshot:
    """Spans that are still to be written, each once.

    What goes wrong is told by ``write_beside`` alone: an update goes on.
    Copies take ``room`` bytes at most. ``compress``: but for what an update waits for, and copies.
    """

    def __init__(self, spans: Iterable[Span], writer: RankWriter, *, room: int, compress: bool) -> None:
        self._writer = writer
        self._compress = compress
        self._left: dict[int, list[Span]] = defaultdict(list)  # by flat
        for span in reversed(list(spans)):  # what is updated first comes first
            self._left[id(span.flat)].append(span)
        self._under_way: set[Span] = set()  # being read
        self._rooms = Rooms(room)
        self._copies: deque[Copy] = deque()
        self._changed = Condition()
        self._error: Exception | None = None
        self.stall_seconds = 0.0
        """That the training thread has spent here."""

    def write_beside(self) -> None:
        """In a thread of its own: write what is at hand, and copies, until all is written. Raises what went wrong."""
        while span := self._claim(_is_at_hand):
            self._write(span, compress=self._compress)
        while copy := self._next_copy():
            self._write_copy(copy)
        if self._error is not None:
            raise self._error

    def before_update(self, flat: Flat, low: int, high: int, owner: object) -> None:
        """See Keeper."""
        if self._left or self._under_way:
            with self._stalling():
                while span := self._claim_overlapping(flat, low, high):
                    self._hand_over(span, state_is_open=span.owner is owner)

    def after_update(self) -> None:
        """See Keeper: what has to be paged in and wasn't updated is written now."""
        self._write_here(lambda span: not _is_at_hand(span))

    def write_the_rest(self) -> None:
        """In the training thread: nothing is left then, but what is under way."""
        self._write_here(None, compress=self._compress)

    def give_up(self, error: Exception) -> None:
        """Write nothing any more, where something is left; returns when nothing is read."""
        with self._changed:
            if self._left or self._under_way or self._copies:
                self._fail(error)
            self._changed.notify_all()
            self._wait_until(lambda: not self._under_way)

    def _write_here(self, which: _Choice | None, *, compress: bool = False) -> None:
        if self._left:
            with self._stalling():
                while span := self._claim(which):
                    self._write(span, compress=compress)

    def _claim(self, which: _Choice | None) -> Span | None:
        """One that is left."""
        with self._changed:
            left = (span for spans in self._left.values() for span in spans)
            found = next(left if which is None else filter(which, left), None)
            return None if found is None else self._take(found)

    def _claim_overlapping(self, flat: Flat, low: int, high: int) -> Span | None:
        """None when neither left nor under way."""
        with self._changed:
            self._wait_until(
                lambda: not any(span.flat is flat and span.overlaps(low, high) for span in self._under_way)
            )
            spans = self._left.get(id(flat), [])
            found = next((span for span in spans if span.overlaps(low, high)), None)
            return None if found is None else self._take(found)

    def _take(self, span: Span) -> Span:
        self._under_way.add(span)  # first: an update that looks must see it in one or the other
        spans = self._left[id(span.flat)]
        spans.remove(span)
        if not spans:
            del self._left[id(span.flat)]
        return span

    def _hand_over(self, span: Span, *, state_is_open: bool) -> None:
        with self._reading(span), span.opened(state_is_open=state_is_open) as entries:
            copy = self._rooms.copy(entries) if span.is_paged else None
            if copy is None:
                self._add(entries, compress=False)
            else:
                self._leave(copy)

    def _leave(self, copy: Copy) -> None:
        """For the thread beside; called while its span is under way still, lest that finds nothing to do."""
        with self._changed:
            if self._error is None:
                self._copies.append(copy)

    def _write(self, span: Span, *, compress: bool) -> None:
        with self._reading(span), span.opened() as entries:
            self._add(entries, compress=compress)

    def _next_copy(self) -> Copy | None:
        """None when all is written, or something has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._copies or not (self._left or self._under_way))
            return self._copies.popleft() if self._copies else None

    def _write_copy(self, copy: Copy) -> None:
        try:
            self._add(copy.entries, compress=False)
        except Exception as error:  # noqa: BLE001 (raised by ``write_beside``)
            with self._changed:
                self._fail(error)
        if self._left:  # else its memory goes
            self._rooms.give_back(copy)

    def _add(self, entries: Sequence[tuple[str, BoxedPiece]], *, compress: bool) -> None:
        for name, piece in entries:
            self._writer.add(name, piece, compress=compress)

    @contextmanager
    def _reading(self, span: Span) -> Iterator[None]:
        """What goes wrong is for ``write_beside`` to raise."""
        error: Exception | None = RuntimeError("it was interrupted")
        try:
            yield
            error = None
        except Exception as caught:  # noqa: BLE001
            error = caught
        finally:  # also of KeyboardInterrupt, which goes on
            with self._changed:
                self._under_way.remove(span)
                if error is not None:
                    self._fail(error)
                self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._left.clear()
        self._copies.clear()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        if not self._changed.wait_for(condition, timeout_seconds()):
            raise TimeoutError(
                f"waited {timeout_seconds():g} s for parameters to be written to a checkpoint: the drive doesn't answer"
            )

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.stall_seconds += time.monotonic() - began


_Choice = Callable[[Span], bool]


def _is_at_hand(span: Span) -> bool:
    return span.is_at_hand
