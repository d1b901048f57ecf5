"""Calls of operators, known by the forms of their arguments, and how long they take here."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from ciuic_dist.comm import groups
from ciuic_dist.comm.together import together
from ciuic_dist.estimate.forms import Form
from ciuic_dist.estimate.whole import Whole

_RUNS: Final = (3, 9)
"""At the least and at the most."""
_ENOUGH: Final = 0.03
"""Seconds after which the least will do."""
_CPU: Final = torch.device("cpu")
_PLAIN: Final = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Untraceable(ValueError):
    """A model that nothing can be predicted of: its code needs values, or its operators meaningful ones."""


Seen = Mapping[str, tuple[float, int]]
"""By a call's text, seconds of all its calls and their number."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operator and what it is given; calls that are equal take equally long."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
        """None where an argument is nothing that can be made again."""
        try:
            given = tuple(_described(value) for value in args)
            named = tuple(sorted((name, _described(value)) for name, value in kwargs.items()))
        except TypeError:
            return None
        return cls(func, given, named)

    def __str__(self) -> str:
        """The same text for the same call, in another process too."""
        return f"{self.func}{self.args}{self.kwargs}"


def _described(value: Any) -> Any:
    """Raises TypeError."""
    if isinstance(value, Tensor) and value.layout is torch.strided:
        return replace(Form.of(value), device=_CPU, requires_grad=False)
    if isinstance(value, list | tuple):
        return tuple(_described(entry) for entry in value)
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(type(value).__name__)


class Clock:
    """Seconds of calls, each measured once; ``known`` has those of before, by the call's text."""

    def __init__(self, known: Mapping[str, float] | None = None, seen: Seen | None = None) -> None:
        """``seen``: every kind of operator counts as so much slower as it was there, whatever it is given."""
        self.known = dict(known or {})
        self._slower = _ratios(self.known, seen or {})

    def measure(self, calls: Iterable[Call], wholes: Mapping[str, Whole] = MappingProxyType({})) -> None:
        """Time all that aren't known, on every rank at once: so the machine is as busy as in training.

        ``wholes``: units by what names them. Collective; the ranks' mean counts. Raises Untraceable where an operator
        doesn't run by itself.
        """
        groups.meet()
        with together(), torch.random.fork_rng(devices=[]):
            taken = {str(call): _timed(call) for call in dict.fromkeys(calls) if str(call) not in self.known}
            for name, whole in wholes.items():
                forward, backward = (_text(name, backward=backward) for backward in (False, True))
                if forward not in self.known:
                    taken[forward], taken[backward] = whole.seconds()
        everyone = groups.gather_objects(taken)
        self.known |= {text: mean(each.get(text, own) for each in everyone) for text, own in taken.items()}

    def seconds(self, calls: Mapping[Call, int]) -> float:
        """Of so many of each."""
        return sum(count * self._one(str(call)) for call, count in calls.items())

    def alone(self, calls: Mapping[Call, int]) -> float:
        """The same as it was measured one by one, wherever they were seen since."""
        return sum(count * self.known[str(call)] for call, count in calls.items())

    def whole(self, name: str, *, backward: bool) -> float:
        """Seconds of a unit's forward or backward, 0 where it can't be run by itself."""
        return self.known[_text(name, backward=backward)]

    def _one(self, text: str) -> float:
        return self.known[text] * self._slower.get(_kind(text), 1.0)


def _ratios(known: Mapping[str, float], seen: Seen) -> dict[str, float]:
    """By kind of operator, what its calls took over what they are known to take."""
    alone: defaultdict[str, float] = defaultdict(float)
    there: defaultdict[str, float] = defaultdict(float)
    for text, (seconds, count) in seen.items():
        if text in known:
            alone[_kind(text)] += count * known[text]
            there[_kind(text)] += seconds
    return {kind: there[kind] / alone[kind] for kind in alone}


def _text(name: str, *, backward: bool) -> str:
    return f"{'backward' if backward else 'forward'} of {name}"


def _kind(text: str) -> str:
    return text.partition("(")[0]


@torch.no_grad()
def _timed(call: Call) -> float:
    args = [_made(value, call) for value in call.args]
    kwargs = {name: _made(value, call) for name, value in call.kwargs}
    try:
        call.func(*args, **kwargs)
    except (RuntimeError, IndexError) as error:  # arguments without meaning
        raise Untraceable(f"{call.func} doesn't run by itself: {error}") from error
    return _repeated(lambda: call.func(*args, **kwargs))


def _repeated(work: Callable[[], object]) -> float:
    least, most = _RUNS
    times: list[float] = []
    while len(times) < least or (sum(times) < _ENOUGH and len(times) < most):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)


def _made(value: Any, call: Call) -> Any:
    """The argument with values of no consequence."""
    if isinstance(value, tuple):
        return [_made(entry, call) for entry in value]
    if not isinstance(value, Form):
        return value
    if call.func._overloadpacket is torch.ops.aten._grouped_mm and not value.dtype.is_floating_point:
        divided, count = _divided(*call.args[:2]), value.size[0]  # where each group ends
        return torch.linspace(divided / count, divided, count).to(value.dtype)
    return value.filled()


def _divided(left: Form, right: Form) -> int:
    """What a grouped product divides among its groups: rows, columns, or what is summed over in a weight's gradient."""
    if len(left.size) == len(right.size):
        return left.size[1]
    return left.size[0] if len(left.size) < len(right.size) else right.size[1]
