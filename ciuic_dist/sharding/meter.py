"""How much memory a step takes besides parameters, gradients and optimizer state."""

from __future__ import annotations

import weakref

from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode, _push_mode

from ciuic_dist.memory.live import LiveBytes


class ActivationMeter:
    """Counts what operators make in the first step, activations and temporary values, and weighs the second.

    Weighing sees what counting doesn't: what libraries take for themselves, and what the heap can't use again. The
    first step can't be weighed, since much of what it makes is made once.
    """

    def __init__(self) -> None:
        self._live = LiveBytes()
        weakref.finalize(self, leave, self._live).atexit = False  # a model may go before its second step
        self.counting = False
        self.weighing = False
        self.complete = False
        """Whether a backward of this step has been watched."""
        self.growth = 0
        """The most bytes that ``weigh`` was given."""

    @property
    def peak(self) -> int:
        """Bytes."""
        return self._live.peak

    def start(self) -> None:
        """Watch the operators of this thread, the backward's among them."""
        if not self.counting and not self.weighing:
            self.counting = True
            self._live.__enter__()  # type: ignore[no-untyped-call]

    def weigh(self, grown: int) -> None:
        """The process is larger by so much now than what is counted of it."""
        self.growth = max(self.growth, grown)

    def end_step(self) -> bool:
        """Go on to the next step; whether this one was the last to watch."""
        done, self.weighing = self.weighing, True
        self.complete = False
        self.stop()
        return done

    def stop(self) -> None:
        """Count no more."""
        self.counting = False
        leave(self._live)


def leave(mode: TorchDispatchMode) -> None:
    """Take ``mode`` off this thread's stack, if it is there; those that were begun later stay."""
    later = []
    while (current := _get_current_dispatch_mode()) not in (mode, None):
        later.append(current)
        _pop_mode()
    if current is mode:
        mode.__exit__(None, None, None)
    for other in reversed(later):
        _push_mode(other)
