"""Which unit a pass of the model needs next, from what earlier passes needed.

A pass that went the same way twice is taken to go so again, and a backward to go back over its forward. Where data
choose the units (experts, layers that are skipped), the next one is guessed from the two before it: the most frequent
of those that have followed them in this phase, recent ones weighing more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

_KEPT = 0.9
"""What an observation weighs after the next one in the same context."""

Context = tuple[Hashable, ...]


class Markov:
    """What follows what; keyed on (phase, previous, current), or on (phase, current) where that was never seen."""

    def __init__(self) -> None:
        self._followers: defaultdict[Context, dict[int | None, float]] = defaultdict(dict)

    def observe(self, phase: str, before: Sequence[int], follower: int | None) -> None:
        """``follower`` came after the units ``before``; None: the end of the pass."""
        for context in _contexts(phase, before):
            weights = self._followers[context]
            for unit in weights:
                weights[unit] *= _KEPT
            weights[follower] = weights.get(follower, 0.0) + 1.0

    def guess(self, phase: str, before: Sequence[int]) -> int | None:
        """What comes after ``before``; None: the end, or nothing that is known."""
        known = next((self._followers[c] for c in _contexts(phase, before) if c in self._followers), {})
        return max(known, key=known.__getitem__, default=None)


def _contexts(phase: str, before: Sequence[int]) -> list[Context]:
    previous, current = ([None, None, *before])[-2:]
    return [(phase, previous, current), (phase, current)]


class Foresight:
    """Follows the passes of one rank, as numbers of units; ``begin``, any ``need``, ``end``."""

    def __init__(self) -> None:
        """``guesses`` were made where the passes before don't tell, ``right`` of them were right."""
        self.guesses = 0
        self.right = 0
        self._markov = Markov()
        self._phase = ""
        self._needed: list[int] = []
        self._expected: list[int] | None = None
        self._last: dict[str, list[int]] = {}
        self._before_last: dict[str, list[int]] = {}

    def begin(self, phase: str) -> None:
        """A "forward" or a "backward" begins."""
        self._phase, self._needed = phase, []
        steady = self._steady("forward" if phase == "backward" else phase)
        if steady or phase not in self._last:
            self._expected = self._last.get(phase)
        else:
            self._expected = self._last["forward"][::-1] if phase == "backward" else None

    def need(self, unit: int, before: int | None = None) -> None:
        """The pass needs ``unit`` next; ``before``: it should have been told so before it was told of that one."""
        if before in self._needed:
            self._expected = None
            self._needed.insert(len(self._needed) - 1 - self._needed[::-1].index(before), unit)
            return
        guess = self.next() if self._expected is None and self._needed else None
        if guess is not None:
            self.guesses += 1
            self.right += guess == unit
        self._markov.observe(self._phase, self._needed, unit)
        if self._expected is not None and self._expected[len(self._needed) :][:1] != [unit]:
            self._expected = None
        self._needed.append(unit)

    def next(self) -> int | None:
        """What the pass will need next; None: nothing, or unknown."""
        if self._expected is not None:
            return next(iter(self._expected[len(self._needed) :]), None)
        return self._markov.guess(self._phase, self._needed) if self._phase in self._last else None

    def end(self) -> None:
        """The pass is over."""
        self._markov.observe(self._phase, self._needed, None)
        if self._phase in self._last:
            self._before_last[self._phase] = self._last[self._phase]
        self._last[self._phase] = self._needed

    def _steady(self, phase: str) -> bool:
        return self._before_last.get(phase, self._last.get(phase)) == self._last.get(phase)
