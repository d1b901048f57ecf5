"""How short a step can be at best: a linear program that every schedule satisfies.

Time is cut where one operation's name gives way to another's. Of each group of items that no cut tells apart,
any fraction may be resident at a cut, any may be fetched or written back between two, and evicting what is
clean costs nothing. A real schedule is a special case (the fluid relaxation), so the optimum is a lower bound.
Whatever holds within a phase is left out, which can only lower it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from ciuic_dist.planning.trace import Trace
from ciuic_dist.planning.two_tier import TwoTier


@dataclass(slots=True)
class _Group:
    """Items that the same phases use in the same way."""

    size: int
    uses: frozenset[int]
    through: frozenset[int]
    """Phases of one operation: what it uses is there from the start."""
    dirties: frozenset[int]
    creates: frozenset[int]
    discards: frozenset[int]


@dataclass(slots=True)
class _Program:
    """Variables with costs and lower bounds, and rows ``sum(coefficient * variable) <= limit``."""

    costs: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float | None] = field(default_factory=list)
    rows: list[tuple[list[tuple[int, float]], float]] = field(default_factory=list)

    def variable(self, *, cost: float = 0.0, lower: float = 0.0, upper: float | None = 1.0) -> int:
        self.costs.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.costs) - 1

    def at_most(self, limit: float, *terms: tuple[int, float]) -> None:
        self.rows.append((list(terms), limit))

    def minimum(self) -> float:
        """The least cost. Raises RuntimeError where there is none."""
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import csr_array

        indices = [(row, *term) for row, (terms, _) in enumerate(self.rows) for term in terms]
        rows, columns, values = (np.array(column) for column in zip(*indices, strict=True))
        matrix = csr_array((values, (rows, columns)), shape=(len(self.rows), len(self.costs)))
        bounds = list(zip(self.lower, self.upper, strict=True))
        limits = [limit for _, limit in self.rows]
        result = linprog(self.costs, A_ub=matrix, b_ub=limits, bounds=bounds, method="highs-ipm")
        if result.status != 0:
            raise RuntimeError(f"the linear program has no solution: {result.message}")
        return float(result.fun)


def lower_bound(trace: Trace, machine: TwoTier, merge: int = 1) -> float:
    """Seconds that no schedule of one step of ``trace`` on ``machine`` can beat. Needs scipy.

    ``merge``: leave out all but every so many-th cut, which is quicker by about its square and lowers the bound
    a little. Raises BudgetTooSmall where the trace can't run.
    """
    room = machine.room(trace)
    names = [[index for index, _ in run] for _, run in groupby(enumerate(trace.ops), key=lambda entry: entry[1].name)]
    phases = [[op for ops in names[at : at + merge] for op in ops] for at in range(0, len(names), merge)]
    computing = [sum(machine.seconds(trace.ops[index]) for index in phase) for phase in phases]
    if trace.size <= room:
        return sum(computing) / trace.steps
    scale = sum(computing)
    program = _Program()
    times = [program.variable(cost=1.0, lower=seconds / scale, upper=None) for seconds in computing]
    capacity: list[list[tuple[int, float]]] = [[] for _ in phases]
    links: list[tuple[list[tuple[int, float]], list[tuple[int, float]]]] = [([], []) for _ in phases]
    for group in _groups(trace, phases):
        _add(program, group, len(phases), room, capacity, links)
    for phase, (fetches, writes) in enumerate(links):
        program.at_most(1.0, *capacity[phase])
        up = [(variable, share * room / machine.up / scale) for variable, share in fetches]
        down = [(variable, share * room / machine.down / scale) for variable, share in writes]
        for terms in (up, down) if machine.duplex else (up + down,):
            program.at_most(0.0, *terms, (times[phase], -1.0))
    return program.minimum() * scale / trace.steps


def _groups(trace: Trace, phases: list[list[int]]) -> Iterable[_Group]:
    found: dict[tuple[frozenset[int], ...], int] = defaultdict(int)
    phase_of = {op: phase for phase, ops in enumerate(phases) for op in ops}
    marks: list[list[set[int]]] = [[set() for _ in range(5)] for _ in trace.items]
    for index, op in enumerate(trace.ops):
        phase = phase_of[index]
        single = op.uses if len(phases[phase]) == 1 else ()
        for mark, items in enumerate((op.uses, single, op.dirties, op.creates, op.discards)):
            for item in items:
                marks[item][mark].add(phase)
    for index, sets in enumerate(marks):
        if sets[0]:
            found[tuple(map(frozenset, sets))] += trace.items[index].size
    return [_Group(size, *sets) for sets, size in found.items()]


def _add(
    program: _Program,
    group: _Group,
    phases: int,
    room: int,
    capacity: list[list[tuple[int, float]]],
    links: list[tuple[list[tuple[int, float]], list[tuple[int, float]]]],
) -> None:
    """The fractions of ``group`` that are resident, and resident and dirty, at the start of each phase."""
    share = group.size / room
    made = group.through - group.creates
    held = [program.variable(lower=float(phase in made)) for phase in range(phases)]
    dirty = [program.variable() for _ in range(phases)]
    for phase in range(phases):
        fetch, write, following = program.variable(upper=None), program.variable(upper=None), (phase + 1) % phases
        capacity[phase].append((held[phase], share))
        links[phase][0].append((fetch, share))
        links[phase][1].append((write, share))
        program.at_most(0.0, (dirty[phase], 1.0), (held[phase], -1.0))
        if phase in group.creates:
            if phase in group.discards:
                continue
        else:
            program.at_most(0.0, (held[following], 1.0), (held[phase], -1.0), (fetch, -1.0))
            if phase in group.uses:
                program.at_most(-1.0, (held[phase], -1.0), (fetch, -1.0))
        if phase in group.discards:
            continue
        if phase in group.dirties:
            program.at_most(-1.0, (dirty[following], -1.0), (write, -1.0))
        else:
            program.at_most(0.0, (dirty[phase], 1.0), (dirty[following], -1.0), (write, -1.0))
