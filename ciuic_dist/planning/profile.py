"""What a model's forward and backward cost, unit by unit, and the trace of a training step made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ciuic_dist.planning.trace import Item, Kind, Op, Trace


@dataclass(frozen=True, slots=True)
class UnitProfile:
    """The modules gathered and released together."""

    name: str
    parameters: int
    """Elements."""
    frozen: int = 0
    """Those that are not trained."""

    @property
    def trained(self) -> int:
        """Elements that have gradients and state."""
        return self.parameters - self.frozen


@dataclass(frozen=True, slots=True)
class Pass:
    """A stretch of forward or backward between two changes of unit."""

    unit: int
    backward: bool
    flops: float
    saved: int = 0
    """Bytes that a forward keeps for its backward."""
    inputs: int = 0
    """Bytes of the activations that a forward starts from: all that is kept where it is computed again."""
    remade: int = 0
    """Bytes of ``saved`` that a forward which is computed again makes: all but its inputs."""
    streamed: float = 0.0
    """Bytes that operations with FLOPs read and write."""
    touched: float = 0.0
    """Bytes that all others read and write."""
    ops: int = 0
    """Operations that compute: no views."""
    above: int = 0
    """Bytes alive at the most beyond those alive when it began."""
    net: int = 0
    """Bytes alive when it ended beyond those alive when it began; a backward leaves fewer."""
    seconds: float = 0.0
    """As measured; 0: not measured."""
    reads: tuple[int, ...] = ()
    """Other units whose weights it reads, in order."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One forward and backward of a model for one batch."""

    units: tuple[UnitProfile, ...]
    passes: tuple[Pass, ...]
    """In the order of execution, forward and backward."""

    def __hash__(self) -> int:
        """Of what differs between micro-batches: caches ask often, and there are hundreds of passes."""
        return hash((len(self.passes), self.passes[-1:]))

    @property
    def parameters(self) -> int:
        """Elements of all units."""
        return sum(unit.parameters for unit in self.units)

    @property
    def trained(self) -> int:
        """Elements that have gradients and state."""
        return sum(unit.trained for unit in self.units)

    @property
    def root(self) -> int:
        """The index of the root unit: the last."""
        return len(self.units) - 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a profile is trained. Bytes are of one parameter."""

    page: int
    """Bytes of a page of optimizer state."""
    weight: int = 2
    gradient: int = 2
    state: int = 10
    """By default the other half of an fp32 master weight, and two fp32 moments."""
    fused: bool = True
    """Update each unit as soon as its gradient is complete; else all after the backward, as clipping needs it."""
    checkpointing: bool = False
    """Keep only what each unit starts from, and compute the unit again in backward (the root excepted)."""


def training_step(profile: Profile, recipe: Recipe) -> Trace:
    """The trace of a step: forward, backward, and the update of each unit page by page."""
    return _Builder(profile, recipe).trace()


class _Builder:
    """Lays out the items, then walks through the passes."""

    def __init__(self, profile: Profile, recipe: Recipe) -> None:
        self.profile, self.recipe = profile, recipe
        self.items: list[Item] = []
        self.weights = [self._item(u.name, u.parameters * recipe.weight, Kind.PARAMETER) for u in profile.units]
        self.gradients = [
            -1 if recipe.fused else self._item(u.name, u.trained * recipe.gradient, Kind.GRADIENT)
            for u in profile.units
        ]
        self.pages = [list(self._pages(u)) for u in profile.units]

    def trace(self) -> Trace:
        backwards = [p.unit for p in self.profile.passes if p.backward]
        last = {unit: index for index, unit in enumerate(backwards)}
        first = {unit: len(backwards) - 1 - index for index, unit in enumerate(reversed(backwards))}
        ops: list[Op] = []
        done = 0
        for p in self.profile.passes:
            if not p.backward:
                ops.append(self._forward(p))
                continue
            ops.append(self._backward(p, first=first[p.unit] == done))
            if self.recipe.fused and last[p.unit] == done:
                ops += self._update(p.unit)
            done += 1
        if not self.recipe.fused:
            for unit in sorted(last, key=last.__getitem__):
                ops += self._update(unit)
        return Trace(tuple(self.items), tuple(ops), self._transient())

    def _item(self, name: str, size: int, kind: Kind) -> int:
        self.items.append(Item(f"{name} {kind}", size, kind))
        return len(self.items) - 1

    def _pages(self, unit: UnitProfile) -> Iterator[int]:
        """Pages of about equal size, none larger than the recipe's."""
        size = unit.trained * self.recipe.state
        count = -(-size // self.recipe.page)
        for page in range(count):
            part = size * (page + 1) // count - size * page // count
            yield self._item(f"{unit.name} page {page}", part, Kind.STATE)

    def _forward(self, p: Pass) -> Op:
        return Op(f"forward {self.profile.units[p.unit].name}", self._weights(p), flops=p.flops)

    def _backward(self, p: Pass, *, first: bool) -> Op:
        weights, gradient = self._weights(p), self.gradients[p.unit]
        name = f"backward {self.profile.units[p.unit].name}"
        again = self._recomputes(p.unit)
        flops = p.flops + sum(q.flops for q in self.profile.passes if again and q.unit == p.unit and not q.backward)
        if self.recipe.fused:
            return Op(name, weights, flops=flops)
        creates = (gradient,) if first else ()
        return Op(name, (*weights, gradient), dirties=(gradient,), creates=creates, flops=flops)

    def _weights(self, p: Pass) -> tuple[int, ...]:
        """Its unit's, and those that it reads of others."""
        return tuple(self.weights[unit] for unit in (p.unit, *p.reads))

    def _update(self, unit: int) -> Iterator[Op]:
        """State and weights are read and written, gradients read."""
        recipe, weight, gradient = self.recipe, self.weights[unit], self.gradients[unit]
        touched = 2 * recipe.state + 2 * recipe.weight + recipe.gradient
        held = (weight,) if recipe.fused else (weight, gradient)
        for page in self.pages[unit]:
            last = page == self.pages[unit][-1]
            yield Op(
                f"update {self.profile.units[unit].name}",
                (*held, page),
                dirties=(weight, page),
                discards=(gradient,) if last and not recipe.fused else (),
                touched=self.items[page].size / recipe.state * touched,
            )

    def _recomputes(self, unit: int) -> bool:
        return self.recipe.checkpointing and unit != len(self.profile.units) - 1

    def _transient(self) -> int:
        """Activations at the turn from forward to backward, and the gradient of one unit."""
        forwards = [p for p in self.profile.passes if not p.backward]
        kept = sum(p.inputs if self._recomputes(p.unit) else p.saved for p in forwards)
        again = max((p.saved for p in forwards if self._recomputes(p.unit)), default=0)
        largest = max(unit.parameters for unit in self.profile.units)
        return kept + again + (largest * self.recipe.gradient if self.recipe.fused else 0)


_BYTES = ("saved", "inputs", "remade", "above", "net")
_GROWS = ("flops", "streamed", "touched", "seconds", *_BYTES)


def extrapolate(few: Profile, many: Profile, counts: tuple[int, int], batch: int) -> Profile:
    """The profile of ``batch`` sequences, from those of so ``few`` and so ``many`` as ``counts`` says.

    What a pass costs has a part that is the same for every batch (reading weights) and a part for each sequence.
    Raises ValueError where the two are not passes of the same model.
    """
    if [(p.unit, p.backward) for p in few.passes] != [(p.unit, p.backward) for p in many.passes]:
        raise ValueError("the model computes in another order for more sequences")
    passes = (_between(a, b, counts, batch) for a, b in zip(few.passes, many.passes, strict=True))
    return Profile(few.units, tuple(passes))


def _between(few: Pass, many: Pass, counts: tuple[int, int], batch: int) -> Pass:
    part = (batch - counts[0]) / (counts[1] - counts[0])
    first, second = (asdict(p) for p in (few, many))
    grown = {name: first[name] + part * (second[name] - first[name]) for name in _GROWS}
    near, count = (few, counts[0]) if batch < counts[1] else (many, counts[1])
    grown["seconds"] = _possible(grown["seconds"], near.seconds, batch / count)
    return Pass(**first | grown | {name: round(grown[name]) for name in _BYTES})


def _possible(seconds: float, measured: float, times: float) -> float:
    """More sequences take no less time, and each no more, whatever two measurements that vary may say."""
    ends = measured, measured * times
    return min(max(seconds, min(ends)), max(ends))
