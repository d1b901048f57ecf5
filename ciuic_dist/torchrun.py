"""torchrun for launchers: ``python -m ciuic_dist.torchrun``, with torchrun's own options.

It leaves with the code of the first rank that failed (128 + the number of a signal that killed it), where torchrun
leaves with 1 and a traceback. Stop signals go to the ranks, which have all the time that the launcher gives them;
torchrun kills them after 30 s. Without ranks, as before and after a run, they end it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ciuic_dist.loop.signals import STOP_SIGNALS, STOPPED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ranks that ``arguments`` (default: the command line's) describe; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    arguments = sys.argv[1:] if arguments is None else arguments
    for each in STOP_SIGNALS:
        signal.signal(each, _pass_on)
    try:
        torchrun(["--signals-to-handle", "SIGHUP,SIGQUIT", *arguments])
    except ChildFailedError as error:
        code = _shell_code(error.get_first_failure()[1].exitcode)
        if code != STOPPED:
            print(error, file=sys.stderr, flush=True)
        return code
    finally:
        for each in STOP_SIGNALS:  # the code is known, and counts also where one more comes while the process ends
            signal.signal(each, signal.SIG_IGN)
    return 0


def _pass_on(number: int, _: FrameType | None) -> None:
    ranks = Path("/proc/thread-self/children").read_text(encoding="ascii").split()
    if not ranks:
        sys.exit(128 + number)
    for process in map(int, ranks):
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _shell_code(code: int) -> int:
    """An exit code as a shell says it: a negative one is that of a process that a signal killed."""
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
