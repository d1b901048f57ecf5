"""Which rank ended, when a collective broke."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from types import TracebackType
from typing import Self

from ciuic_dist.comm.errors import PeerLost
from ciuic_dist.comm.groups import gather_objects, host_identity, rank

_PATIENCE = 2.0  # seconds; a connection closes a moment before its process has ended


class PeerWatch:
    """While entered, an error that another rank's end brought about becomes a PeerLost naming that rank.

    It sees the ranks of its own host, by a file descriptor each that tells when the process has ended.
    """

    def __enter__(self) -> Self:
        self._processes: dict[int, tuple[int, int]] = {}  # descriptor: (rank, process id)
        for peer, (host, process) in enumerate(gather_objects((host_identity(), os.getpid()))):
            if peer != rank() and host == host_identity():
                with suppress(OSError):  # an old kernel, or the peer has ended already: it can't be named
                    self._processes[os.pidfd_open(process)] = (peer, process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, RuntimeError):
                ended = self._ended()
                if ended:
                    names = ", ".join(f"rank {peer} (process {process})" for peer, process in ended)
                    raise PeerLost(
                        f"{names} ended while this rank still worked with it; run the same command again to go on "
                        f"from the newest checkpoint [{str(error).splitlines()[0]}]"
                    ) from error
        finally:
            for descriptor in self._processes:
                os.close(descriptor)

    def _ended(self) -> list[tuple[int, int]]:
        poll = select.poll()
        for descriptor in self._processes:
            poll.register(descriptor, select.POLLIN)
        return sorted(self._processes[descriptor] for descriptor, _ in poll.poll(_PATIENCE * 1000))
