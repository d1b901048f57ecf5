"""A sharded model: its units, and what happens to them before and after they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol
from weakref import WeakSet

import torch
from torch import nn

from ciuic_dist.comm.errors import PeerLost
from ciuic_dist.comm.groups import rank
from ciuic_dist.comm.mesh import Mesh
from ciuic_dist.planning.activations import Way
from ciuic_dist.sharding.activations import Activations
from ciuic_dist.sharding.division import Division
from ciuic_dist.sharding.exchange.base import Exchange
from ciuic_dist.sharding.flat import Keeper
from ciuic_dist.sharding.gathers import Gathers
from ciuic_dist.sharding.gradients import GradientFlow
from ciuic_dist.sharding.sizes import Sizes
from ciuic_dist.sharding.spill import Spill
from ciuic_dist.sharding.unit import Unit
from ciuic_dist.sharding.versions import VersionWatch


class HoldsState(Protocol):
    """An optimizer of this model."""

    def state_bytes(self) -> int:
        """Bytes of its state on this rank."""
        ...


class Sharded:
    """What ``shard`` keeps for a model. Units are ordered as the model's modules are, the root last."""

    def __init__(
        self,
        module: nn.Module,
        units: Sequence[Unit],
        exchange: Exchange,
        mesh: Mesh,
        *,
        stage: int,
        spill: Spill | None = None,
        wishes: Sequence[Way] | None = None,
    ) -> None:
        """``wishes``: what to do with each unit's activations under a budget; None: what is found best."""
        self.module = module
        self.units = list(units)
        self.flats = [flat for unit in units for flat in unit.flats]
        self.exchange = exchange
        self.mesh = mesh
        self.stage = stage
        self.spill = spill
        keeps = spill is None or spill.activations is Way.KEEP
        self.activations = None if spill is None or keeps else Activations(module, self.units, spill, wishes)
        self.division = None if spill is None else self._division(spill)
        self.gathers = Gathers(self.units, exchange)
        # The root's gradients come over the whole backward, and are complete at its end.
        backwards = sorted(self.units, key=lambda unit: (unit.is_root, -unit.index))
        self.gradients = GradientFlow([flat for unit in backwards for flat in reversed(unit.trainable)], exchange)
        self.versions = VersionWatch(self.flats)
        self.last = True
        self.accumulates = False
        self.updating = False
        self.torn: str | None = None
        self.compute_dtype: torch.dtype | None = None
        self.optimizers: WeakSet[HoldsState] = WeakSet()
        self.peak = 0
        self.keeper: Keeper | None = None
        self._state_bytes = 0
        self._apart = False
        self._running: list[Unit] = []

    def _division(self, spill: Spill) -> Division:
        sizes = [flat.layout.shard_numel for flat in self.flats if flat.trainable]
        largest_share = max(sizes, default=0) / max(sum(sizes), 1)
        gradient_slots = partial(self._gradient_slots, spill.page_bytes)
        return Division(spill, self.exchange, self.activations, gradient_slots, largest_share)

    def serve(self, optimizer: HoldsState) -> None:
        """``optimizer`` is this model's, and has made its columns. Raises BudgetError where these have no room."""
        self.optimizers.add(optimizer)
        if self.division is not None:
            self.division.check_pages()

    def keep(self, keeper: Keeper | None) -> None:
        """Tell ``keeper``, the only one, from now on what is about to be updated."""
        self.keeper = keeper
        for flat in self.flats:
            flat.keeper = keeper

    def begin_forward(self, sizes: Sizes) -> None:
        """The model's forward begins, with tensors of these sizes."""
        if self.gradients.active:  # a backward that raised
            self._abandon_backward()
        self._running.clear()
        self.refuse_while_updating()
        self.check()
        self.accumulates |= not self.last and torch.is_grad_enabled()
        if self.division is not None:
            self.division.begin_forward(sizes, gradients=torch.is_grad_enabled())
        self.gathers.begin("forward")

    def end_forward(self, *, raised: bool) -> None:
        """The model's forward is over, or has ``raised``."""
        self._running.clear()
        in_step = self.gathers.end()
        if in_step:
            self.exchange.meet()
        self.note_peak()
        if self.division is not None:
            self.division.end_forward(in_step=in_step, raised=raised)

    def begin_backward(self) -> None:
        """The first gradient of a backward has come."""
        self.refuse_while_updating()
        self.accumulates |= not self.last
        for unit in self.units:
            for flat in unit.flats:
                flat.final = self.last and not unit.is_root and not unit.borrowed
        # Where gradients are sharded they are reduced at once: what a rank kept of them would be as large as the model.
        sync = self.last or self.stage >= 2 or not self.exchange.has_peers
        self.gradients.begin(sync=sync, last=self.last)
        self._apart = sync and not self.last and self.mesh.replicas > 1
        self.gathers.begin("backward")

    def end_backward(self) -> None:
        """The last has."""
        in_step = self.gathers.end()
        self.gradients.finish()
        if in_step:
            self.exchange.meet()
        self.note_peak()
        for unit in self.units:
            unit.backward_is_over()
        self.gathers.release_all(but_root=False)
        if self.division is not None:
            self.division.end_backward(raised=False)

    def enter(self, unit: Unit, *, forward: bool) -> None:
        """``unit`` is about to compute: gather the units whose weights it reads, and itself."""
        if forward:
            self._running.append(unit)
        elif self.activations is not None:
            self.activations.backward_begins(unit)
        for other in unit.reads:
            self.gathers.need(other)
        self.gathers.need(unit)

    def leave(self, unit: Unit, *, keep: bool) -> None:
        """``unit`` has computed in forward; ``keep``: its backward comes next."""
        while self._running and self._running.pop() is not unit:
            pass  # units whose forward raised
        self.note_peak()
        if self.division is not None:
            self.division.check()
        needed = {id(other) for running in self._running for other in (running, *running.reads)}
        for other in () if keep else (unit, *unit.reads):
            if id(other) not in needed:
                self.gathers.release(other)

    def is_running(self, unit: Unit) -> bool:
        """Whether the unit's own forward is under way."""
        return unit in self._running

    def note_foreign_read(self, unit: Unit) -> None:
        """The running unit reads a weight of ``unit``, now and from now on."""
        unit.borrowed = True
        reader = self._running[-1] if self._running else None
        if reader is not None and unit not in reader.reads:
            reader.reads.append(unit)
        self.gathers.need(unit, before=reader)

    def release_after_backward(self, unit: Unit) -> None:
        """The unit's own backward is over. The root's and that of units which borrow from this one may not be."""
        self.note_peak()
        if not unit.is_root and not unit.borrowed:
            self.gathers.release(unit)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards in this context are not the last of their step.

        At stages 0 and 1 their gradients stay on their rank, to be reduced with the last one's. At 2 and 3 each group
        of ranks keeps what it has summed, and the last one's adds that up over the groups.
        """
        before, self.last = self.last, False
        try:
            yield
        finally:
            self.last = before

    def update_begins(self) -> None:
        """Before any parameter is overwritten.

        Raises RuntimeError where a backward raised, where gradients were accumulated under ``no_sync`` and
        never reduced, or where something else has written to a parameter.
        """
        if self.gradients.active:
            self._abandon_backward()
            raise RuntimeError("the last backward raised, its gradients are dropped: run it again before the update")
        self.refuse_unreduced()
        self.check()
        if self.activations is not None:
            self.activations.settle()
        self.exchange.before_update()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Masters are updated meanwhile; where that fails, on any rank, only a part of them is.

        Under a budget, where a drive may fail, the other ranks are told, and raise PeerLost.
        """
        failure: Exception | None = None
        self.torn = "an update that raised has changed a part of it"
        try:
            yield
        except Exception as caught:  # noqa: BLE001 (raised below, when the others know)
            failure = caught
        failed = self._tell(failure)
        if failure is not None:
            raise failure
        if failed:
            raise PeerLost(f"rank {failed - 1} raised in an update, and says why: load a checkpoint")
        self.torn = None

    def _tell(self, failure: Exception | None) -> int:
        """The number of a rank whose update has raised, counted from 1; 0 where none has, or nobody is told."""
        if self.spill is None or isinstance(failure, PeerLost):
            return 0
        try:
            return self.exchange.largest(0 if failure is None else 1 + rank())
        except PeerLost:
            if failure is None:
                raise
            return 0

    def refuse_unreduced(self) -> None:
        """Raise RuntimeError where gradients were accumulated under ``no_sync``, and not yet reduced over all ranks."""
        waits = (flat for flat in self.flats if any(flat.written) or (self._apart and any(flat.touched)))
        waiting = next(waits, None)
        if waiting is not None:
            raise RuntimeError(
                f"gradients of {waiting.name} were accumulated under no_sync and never reduced: "
                f"run the last backward of a step outside no_sync"
            )

    def update_ends(self) -> None:
        """After this rank's masters have changed."""
        if self.keeper is not None:
            self.keeper.after_update()
        self.exchange.after_update()
        if self.exchange.gathers:
            self.gathers.mark_stale()
        self.versions.count_update()
        self.updating, self.torn = False, None
        self._state_bytes = sum(optimizer.state_bytes() for optimizer in self.optimizers)
        if self.spill is not None and self.division is not None:
            self.spill.end_step()
            self.division.state_bytes = self._state_bytes
            self.division.end_step()
        self.note_peak()

    @contextmanager
    def replacing(self, failure: str) -> Iterator[None]:
        """All values are replaced; where that fails (``failure`` says so), on all ranks, the model is torn."""
        self.update_begins()
        self.torn = failure
        try:
            yield
        except Exception:
            self.update_ends()
            self.torn = failure
            raise
        self.update_ends()

    def _gradient_slots(self, page_bytes: int) -> int:
        """Pages of gradients that are kept for the update; those used up as they are reduced need none."""
        late = self.accumulates or not self.exchange.reduces_at_once
        return sum(
            -(-flat.layout.shard_numel * flat.master_dtype.itemsize // page_bytes)
            for unit in self.units
            for flat in unit.trainable
            if late or unit.is_root or unit.borrowed or flat.consume is None
        )

    def _abandon_backward(self) -> None:
        if self.updating:
            self.torn = "a backward that raised has updated a part of it (the optimizer has in_backward=True)"
        in_step = self.gathers.end()
        self.gradients.abandon()
        if in_step:
            self.exchange.meet()
            if self.division is not None:
                self.division.end_backward(raised=True)

    def refuse_while_updating(self) -> None:
        """Raise RuntimeError where a part of the model is updated, and another isn't."""
        self.refuse_torn()
        if self.updating:
            raise RuntimeError(
                "the optimizer, made with in_backward=True, has updated a part of this model: call its step() first; "
                "run all but the last backward of a step inside cd.no_sync(model)"
            )

    def refuse_torn(self) -> None:
        """Raise RuntimeError where only a part of the model was updated, or loaded."""
        if self.torn:
            raise RuntimeError(
                f"this model is of no use: {self.torn}, which can't be undone; load a checkpoint of model and optimizer"
            )

    def check(self) -> None:
        """Raise RuntimeError where parameters are not what the optimizer and the other ranks take them for."""
        for flat in self.flats:
            flat.check_attached()
        self.versions.check()

    def close(self) -> None:
        """Let go of the other ranks and of lower tiers; the model is of no use any more."""
        if self.keeper is not None:
            self.keeper.abandon()
        self.exchange.close()
        if self.spill is not None:
            self.spill.close()

    def usage(self) -> int:
        """Bytes this rank holds for parameters, gradients and, as of the last update, optimizer state.

        Under a budget also the most that anything else may take.
        """
        if self.spill is not None and self.division is not None:
            return self.spill.used + self.division.transient
        landings = sum(
            flat.landing.nbytes
            for flat in self.flats
            if flat.landing is not None and flat.landing.untyped_storage().nbytes() == flat.landing.nbytes
        )
        own = sum(flat.own_bytes for flat in self.flats)
        return self.exchange.usage() + own + landings + self._state_bytes

    @property
    def idle_bytes(self) -> int:
        """Of the host, under a budget: what activations may take there, but not while parameters are updated."""
        if self.spill is None or self.division is None or not self.spill.device.is_host:
            return 0
        return self.division.transient

    def note_peak(self) -> None:
        """Called where memory has grown."""
        self.peak = max(self.peak, self.usage())
        if self.division is not None:
            self.division.note()
