"""A sharded model: its units, and what happens to them before and after they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from ciuic_dist.sharding.exchange.base import Exchange
from ciuic_dist.sharding.exchange.local import LocalExchange
from ciuic_dist.sharding.gradients import GradientFlow
from ciuic_dist.sharding.unit import Unit, UnitState


class HoldsState(Protocol):
    """An optimizer of this model."""

    def state_bytes(self) -> int:
        """Bytes of its state on this rank."""
        ...


class Sharded:
    """What ``shard`` keeps for a model. Units are ordered as the model's modules are, the root last."""

    def __init__(self, module: nn.Module, units: Sequence[Unit], exchange: Exchange, *, stage: int) -> None:
        self.module = module
        self.units = list(units)
        self.flats = [flat for unit in units for flat in unit.flats]
        self.exchange = exchange
        self.stage = stage
        self.gradients = GradientFlow([flat for flat in self.flats if flat.trainable], exchange)
        self.sync = True
        self.compute_dtype: torch.dtype | None = None
        self.optimizers: list[HoldsState] = []
        self.peak = 0
        self.exchanging = False
        self._next: dict[tuple[str, int], Unit] = {}
        self._last: tuple[str, int] | None = None
        self._running: list[Unit] = []
        self._versions: list[int] = []
        self.note_versions()

    def enter(self, unit: Unit, phase: str) -> None:
        """``unit`` is about to compute: gather it, and the units whose weights it reads."""
        if phase == "forward":
            self._running.append(unit)
        for other in unit.reads:
            self.gather(other, phase)
        self.gather(unit, phase)

    def leave(self, unit: Unit, *, keep: bool) -> None:
        """``unit`` has computed in forward; ``keep``: its backward comes next."""
        while self._running and self._running.pop() is not unit:
            pass  # units whose forward raised
        needed = {id(other) for running in self._running for other in (running, *running.reads)}
        for other in () if keep else (unit, *unit.reads):
            if id(other) not in needed:
                self.release(other)

    def is_running(self, unit: Unit) -> bool:
        """Whether the unit's own forward is under way."""
        return unit in self._running

    def note_foreign_read(self, unit: Unit) -> None:
        """The running unit reads a weight of ``unit``, now and from now on."""
        unit.borrowed = True
        if self._running and unit not in self._running[-1].reads:
            self._running[-1].reads.append(unit)
        self.gather_alone(unit)

    def gather(self, unit: Unit, phase: str) -> None:
        """Make ``unit`` full, and start on the unit that came after it the last time."""
        self.gather_alone(unit)
        here = (phase, unit.index)
        if self._last is not None and self._last[1] != unit.index:
            self._next[self._last] = unit
        self._last = here
        following = self._next.get(here)
        if following is not None and following.state is UnitState.SHARDED:
            self._start(following)

    def gather_alone(self, unit: Unit) -> None:
        """Make ``unit`` full."""
        if unit.state is UnitState.SHARDED:
            self._start(unit)
        self._finish(unit)

    def release(self, unit: Unit) -> None:
        """The unit has computed; its full form goes if it is one that goes."""
        if unit.state is UnitState.FULL and not unit.keep_full:
            self.exchange.release(unit)
            unit.move(UnitState.SHARDED)

    def release_after_backward(self, unit: Unit) -> None:
        """The unit's own backward is over. The root's and that of units which borrow from this one may not be."""
        if unit.module is not self.module and not unit.borrowed:
            self.release(unit)

    def release_all(self) -> None:
        """Release every unit, also one gathered ahead that nobody used."""
        for unit in self.units:
            self._finish(unit)
            self.release(unit)
        self._last = None

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards in this context leave their gradients on their rank, to be reduced with the next one's."""
        before, self.sync = self.sync, isinstance(self.exchange, LocalExchange)
        try:
            yield
        finally:
            self.sync = before

    def update_begins(self) -> None:
        """Before any parameter is overwritten.

        Raises RuntimeError where gradients were accumulated under ``no_sync`` and never reduced.
        """
        waiting = next((flat for flat in self.flats if any(flat.written)), None)
        if waiting is not None:
            raise RuntimeError(
                f"gradients of {waiting.name} were accumulated under no_sync and never reduced: "
                f"run the last backward of a step outside no_sync"
            )
        self.exchange.before_update()

    def update_ends(self) -> None:
        """After this rank's masters have changed."""
        for flat in self.flats:
            flat.refresh_shard()
        self.exchange.after_update()
        for unit in self.units:
            self._finish(unit)
            if unit.state is UnitState.FULL:
                if not unit.keep_full:
                    self.exchange.release(unit)
                unit.move(UnitState.SHARDED)
        torch.autograd.graph.increment_version([p for flat in self.flats for p in flat.parameters])
        self.note_versions()

    def note_versions(self) -> None:
        """Remember the parameters as they are, to notice writes that are not the optimizer's."""
        self._versions = [p._version for flat in self.flats for p in flat.parameters]

    def check_versions(self) -> None:
        """Raise RuntimeError where something else than an optimizer of this library wrote to a parameter."""
        versions = [p._version for flat in self.flats for p in flat.parameters]
        if versions != self._versions:
            names = [slot.name for flat in self.flats for slot in flat.layout.slots]
            changed = next(n for n, old, new in zip(names, self._versions, versions, strict=True) if old != new)
            raise RuntimeError(
                f"{changed} was written to since it was sharded, which the other ranks and the optimizer don't see; "
                f"change parameters before cd.shard, or through cd.load"
            )

    def usage(self) -> int:
        """Bytes this rank holds for parameters and gradients, now."""
        landings = sum(
            flat.landing.nbytes
            for flat in self.flats
            if flat.landing is not None and flat.landing.untyped_storage().nbytes() == flat.landing.nbytes
        )
        state = sum(optimizer.state_bytes() for optimizer in self.optimizers)
        return self.exchange.usage() + sum(flat.kept_bytes for flat in self.flats) + landings + state

    def _start(self, unit: Unit) -> None:
        unit.move(UnitState.GATHERING)
        self.exchanging = True
        self.exchange.start_gather(unit)
        self.exchanging = False

    def _finish(self, unit: Unit) -> None:
        if unit.state is UnitState.GATHERING:
            self.exchange.finish_gather(unit)
            unit.move(UnitState.FULL)
