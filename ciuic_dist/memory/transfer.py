"""Copies between the device and lower tiers beside the computation: the one home of asynchronous transfers."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from torch import Tensor

from ciuic_dist.memory.device import Device, HostDevice
from ciuic_dist.memory.tier import PageError, Tier
from ciuic_dist.monitor.spilling import LinkStats


@dataclass(frozen=True, slots=True)
class TransferStats:
    """``links`` by name, such as "device->nvme"; ``stall_seconds`` were spent waiting for transfers."""

    links: Mapping[str, LinkStats]
    stall_seconds: float

    @property
    def bandwidth(self) -> float:
        """Bytes a second, over all links while they were busy; infinite before the first transfer."""
        seconds = sum(link.seconds for link in self.links.values())
        return sum(link.bytes for link in self.links.values()) / seconds if seconds else math.inf


@dataclass(frozen=True, slots=True)
class Copy:
    """One page's way over ``link``, to be begun by Transfers; ``run`` does it."""

    link: str
    name: str
    nbytes: int
    run: Callable[[], None]


def store(tier: Tier, slot: int, source: Tensor, name: str) -> Copy:
    """A ``tier.write``; ``source`` must stay as it is until the ticket is done."""
    return Copy(f"device->{tier.name}", name, source.numel(), partial(tier.write, slot, source, name))


def fetch(tier: Tier, slot: int, into: Tensor, name: str) -> Copy:
    """A ``tier.read``; ``into`` is valid once waiting for the ticket has raised nothing."""
    return Copy(f"{tier.name}->device", name, into.numel(), partial(tier.read, slot, into, name))


class Transfers:
    """Threads that move pages. Any transfer may overtake another: what must come after one waits for its ticket."""

    def __init__(self, threads: int, timeout: float, device: Device | None = None) -> None:
        """``timeout``: seconds that waiting for a ticket may take; ``device``: None for the host."""
        self._timeout = timeout
        self._device = device or HostDevice()
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix="ciuic-transfer", initializer=self._device.enter_thread
        )
        self._lock = Lock()
        self._links: defaultdict[str, _Link] = defaultdict(_Link)
        self._stall_seconds = 0.0

    def start(self, copies: Sequence[Copy]) -> Ticket:
        """Begin ``copies``, each when the one before is through, so that they may use the same memory.

        They come after all that this thread has asked of the device until now.
        """
        what = ", then ".join(f"{copy.name} ({copy.link})" for copy in copies)
        through: list[Copy] = []
        future = self._executor.submit(self._run, copies, self._device.mark(), through)
        return Ticket(future, through, what, self._timeout, self._count_stall)

    def store(self, tier: Tier, slot: int, source: Tensor, name: str) -> Ticket:
        """Begin one ``store``."""
        return self.start([store(tier, slot, source, name)])

    def fetch(self, tier: Tier, slot: int, into: Tensor, name: str) -> Ticket:
        """Begin one ``fetch``."""
        return self.start([fetch(tier, slot, into, name)])

    @property
    def stats(self) -> TransferStats:
        """What was moved until now, without what failed."""
        with self._lock:
            links = {name: LinkStats(link.bytes, link.count, link.seconds) for name, link in self._links.items()}
            return TransferStats(links, self._stall_seconds)

    def close(self) -> None:
        """Wait for what is under way and end the threads. What failed is told by its ticket alone."""
        self._executor.shutdown()

    def _run(self, copies: Sequence[Copy], mark: Any, through: list[Copy]) -> None:
        for copy in copies:
            with self._busy(copy.link), self._device.beside(mark):
                copy.run()
            with self._lock:
                self._links[copy.link].bytes += copy.nbytes
                self._links[copy.link].count += 1
            through.append(copy)

    @contextmanager
    def _busy(self, name: str) -> Iterator[None]:
        with self._lock:
            link = self._links[name]
            link.under_way += 1
            if link.under_way == 1:
                link.since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                link.under_way -= 1
                if link.under_way == 0:
                    link.seconds += time.monotonic() - link.since

    def _count_stall(self, seconds: float) -> None:
        with self._lock:
            self._stall_seconds += seconds


def wait_for_all(tickets: Sequence[Ticket]) -> None:
    """Return when all are done. Raises PageError where one failed, none of them being under way any more."""
    failures = []
    for ticket in tickets:
        try:
            ticket.wait()
        except PageError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


class _Link:
    def __init__(self) -> None:
        self.bytes = 0
        self.count = 0
        self.seconds = 0.0
        self.under_way = 0
        self.since = 0.0


class Ticket:
    """A transfer under way or done."""

    def __init__(
        self,
        future: Future[None],
        through: Sequence[Copy],
        what: str,
        timeout: float,
        count_stall: Callable[[float], None],
    ) -> None:
        self._future = future
        self._through = through
        self._what = what
        self._timeout = timeout
        self._count_stall = count_stall

    @property
    def through(self) -> int:
        """How many of its copies have ended well, one after the other."""
        return len(self._through)

    def done(self) -> bool:
        """Whether ``wait`` would return, or raise, at once."""
        return self._future.done()

    def wait(self) -> None:
        """Return when the transfer is done.

        Raises what the tier raised (PageError), at every call; TimeoutError, naming the page, after the timeout.
        """
        start = time.monotonic()
        try:
            error = self._future.exception(self._timeout)
        except TimeoutError:
            raise TimeoutError(f"waited {self._timeout:g} s for {self._what}: the drive doesn't answer") from None
        finally:
            self._count_stall(time.monotonic() - start)
        if error is not None:
            raise error
