"""A polite request to stop: finish the step, save, exit. A second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Self

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED: Final = 75
"""The exit code of a run that was asked to stop: "temporary failure" in sysexits.h, the same command goes on."""
ECHO: Final = 1.0
"""Seconds within which a signal is the first one again: Slurm signals every process, and torchrun its ranks too."""


class Requests:
    """What a series of signals asks for."""

    def __init__(self) -> None:
        self.made = False
        self._first = 0.0

    def hear(self, at: float) -> bool:
        """A signal came ``at`` this time, in seconds; whether it is a second request."""
        if not self.made:
            self.made, self._first = True, at
        return at > self._first + ECHO


class StopRequest:
    """While entered, stop signals set ``made``; a second request ends the process with 128 + the signal's number.

    A thread hears them, since the main thread runs no handler while it waits in a collective for a peer that hangs.
    """

    def __init__(self) -> None:
        self._requests = Requests()
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    @property
    def made(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requests.made

    def __enter__(self) -> Self:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), name="stop-signals", daemon=True).start()
        for each in STOP_SIGNALS:
            self._before[each] = signal.signal(each, _heard_elsewhere)
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writing)  # which ends the thread

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in STOP_SIGNALS and self._requests.hear(time.monotonic()):
                    _leave(signal.Signals(number[0]))


def _heard_elsewhere(number: int, _: FrameType | None) -> None:
    """The interpreter writes a signal's number to the pipe only where it has a handler."""


def _leave(number: signal.Signals) -> None:
    words = f"{number.name} again: leaving at once, without a checkpoint\n"
    os.write(2, words.encode())
    os._exit(128 + number)
