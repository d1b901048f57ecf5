"""How long operators take in a training step, with whatever lies in the caches then."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ciuic_dist.comm import groups
from ciuic_dist.estimate.calls import Call, Seen


class Observer(TorchDispatchMode):
    """While it is on, times every operator of forward and backward on the CPU, without what it takes to call it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    def seen(self) -> Seen:
        """What all ranks saw, the same on each. Collective."""
        seconds: defaultdict[str, float] = defaultdict(float)
        counts: Counter[str] = Counter()
        for taken, times in groups.gather_objects((self._seconds, self._counts)):
            counts.update(times)
            for text in taken:
                seconds[text] += taken[text]
        return {text: (seconds[text], counts[text]) for text in seconds}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call.of(func, args, kwargs)  # before it: some operators resize what they are given
        began = time.perf_counter()
        result = func(*args, **kwargs)
        taken = time.perf_counter() - began
        if call is not None:
            text = str(call)
            self._seconds[text] += taken
            self._counts[text] += 1
        return result
