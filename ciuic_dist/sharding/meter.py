"""How much memory a step takes besides parameters, gradients and optimizer state."""

from __future__ import annotations

from torch.utils._python_dispatch import _get_current_dispatch_mode

from ciuic_dist.memory.live import LiveBytes


class ActivationMeter:
    """Counts what operators make from the first forward to the update after it: activations and temporary values."""

    def __init__(self) -> None:
        self._live = LiveBytes()
        self.started = False
        self.complete = False
        """Whether a backward has been watched as well."""

    @property
    def peak(self) -> int:
        """Bytes."""
        return self._live.peak

    def start(self) -> None:
        """Watch the operators of this thread, the backward's among them."""
        if not self.started:
            self.started = True
            self._live.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Watch no longer; a mode that was begun later and is still on must be left alone."""
        if _get_current_dispatch_mode() is self._live:
            self._live.__exit__(None, None, None)  # type: ignore[no-untyped-call]
