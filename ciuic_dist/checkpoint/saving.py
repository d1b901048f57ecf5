"""A checkpoint in the making, beside training."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Thread, get_ident
from weakref import WeakSet

import torch

from ciuic_dist.checkpoint.folder import draft_of, give_up
from ciuic_dist.checkpoint.manifest import RankFiles
from ciuic_dist.checkpoint.snapshot import Snapshot
from ciuic_dist.checkpoint.writing import RankWriter, commit
from ciuic_dist.comm.ballot import Ballot
from ciuic_dist.comm.groups import timeout_seconds
from ciuic_dist.comm.together import portable
from ciuic_dist.sharding.flat import Flat
from ciuic_dist.sharding.sharded import Sharded

_Vote = RankFiles | Exception


class Saving:
    """What ``cd.save(..., wait=False)`` gives, on every rank.

    The checkpoint is at its path, durable, when all ranks have written theirs, whether anyone waits or not: a process
    that ends well waits for it. Until then or until the next ``optimizer.step()`` is over, nothing but that may change
    parameters.
    """

    def __init__(self, path: Path, sharded: Sharded, snapshot: Snapshot, writer: RankWriter, ballot: Ballot) -> None:
        self.path = path
        self._sharded = sharded
        self._snapshot = snapshot
        self._writer = writer
        self._ballot = ballot
        self._error: Exception | None = None
        self._abandoned = False
        self.told = False
        """Somebody knows how it ended."""
        self._waited = 0.0
        self._training = get_ident()
        self._thread = Thread(target=self._run, name="ciuic-saving", daemon=True)

    def begin(self) -> None:
        """Write from now on, on every rank."""
        self._sharded.keep(self)
        _begun.add(self)
        atexit.unregister(_end_all)
        atexit.register(_end_all)  # runs before what was registered earlier: the end of the group
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether ``wait`` would return, or raise, at once."""
        return not self._thread.is_alive()

    @property
    def stall_seconds(self) -> float:
        """That training has spent on it: copying, writing what its thread hadn't come to, and waiting."""
        return self._snapshot.stall_seconds + self._waited

    def wait(self) -> None:
        """Return when the checkpoint is durable; for the thread that trains.

        Raises what failed on any rank, on all ranks; TimeoutError where nothing is written for longer than the timeout.
        """
        if not self.done:
            if get_ident() != self._training:
                raise RuntimeError(
                    "a checkpoint is waited for by the thread that trains: it has to write a part itself"
                )
            self._snapshot.write_the_rest()
            self._join()
        if self._sharded.keeper is self:
            self._sharded.keep(None)
        self.told = True
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Wait for no other rank any more; raises what failed, here or for that reason."""
        self._snapshot.give_up(RuntimeError("a rank failed before it had written its part"))
        self._ballot.leave()
        self._join()
        self.wait()

    def _join(self) -> None:
        began, written = time.monotonic(), -1
        while self._thread.is_alive() and written != (written := _bytes_in(draft_of(self.path))):
            self._thread.join(timeout_seconds())
        self._waited += time.monotonic() - began
        if self._thread.is_alive():
            raise TimeoutError(
                f"waited {timeout_seconds():g} s for the checkpoint {self.path}, in which nothing was written: "
                f"a rank doesn't go on, or the drive doesn't answer"
            )

    def before_update(self, flat: Flat, low: int, high: int, owner: object) -> None:
        """See Keeper."""
        self._snapshot.before_update(flat, low, high, owner)

    def after_update(self) -> None:
        """See Keeper."""
        self._snapshot.after_update()

    def abandon(self) -> None:
        """See Keeper."""
        self._abandoned = True
        self._snapshot.give_up(RuntimeError("the model was closed before all of it was written"))

    @torch.no_grad()
    def _run(self) -> None:
        try:
            self._error = self._ballot.decide(self._vote(), partial(_decide, self.path))
        except Exception as error:  # noqa: BLE001 (raised by ``wait``)
            self._error = error

    def _vote(self) -> _Vote:
        try:
            with self._writer as writer:
                self._snapshot.write_beside()
                files = writer.finish()
        except Exception as error:  # noqa: BLE001 (told to all ranks)
            self._snapshot.give_up(error)
            return portable(error)
        return RuntimeError("the model was closed before the checkpoint was there") if self._abandoned else files


_begun: WeakSet[Saving] = WeakSet()


def _end_all() -> None:
    """Have no thread left: one that waits in C++ when the interpreter is gone aborts the process."""
    failed = getattr(sys, "last_value", None) is not None  # it ends by an exception, on this rank if on no other
    for saving in [saving for saving in _begun if not saving.told]:
        try:
            if failed and not saving.done:
                saving.leave()
            else:
                saving.wait()
        except Exception as error:  # noqa: BLE001 (there is nobody to raise it to)
            sys.stderr.write(f"the checkpoint {saving.path} may not be there: {error}\n")


def _decide(path: Path, votes: Sequence[_Vote]) -> Exception | None:
    """Commit where all ranks have written their files; else these go."""
    failed = next(((rank, vote) for rank, vote in enumerate(votes) if isinstance(vote, Exception)), None)
    if failed is not None:
        failed[1].add_note(f"on rank {failed[0]}, while the checkpoint {path} was written")
        give_up(path)
        return failed[1]
    try:
        commit(path, [vote for vote in votes if isinstance(vote, RankFiles)])
    except Exception as error:  # noqa: BLE001 (told to all ranks)
        give_up(path)
        return portable(error)
    return None


def _bytes_in(draft: Path) -> int:
    """How far all ranks are; 0 where the draft has become the checkpoint."""
    try:
        return sum(file.stat().st_size for file in draft.glob("*"))
    except FileNotFoundError:  # it becomes it just now
        return -2
