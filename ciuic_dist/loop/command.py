"""A command about a run that has been trained: what is wrong with its settings is a line, not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


def run_command(work: Callable[[Sequence[str]], None], text: str | None, arguments: Sequence[str] | None) -> int:
    """``work`` on ``arguments`` (None: the command line's), or ``text`` where help is asked for; the exit code."""
    from ciuic_dist.checkpoint.errors import CorruptCheckpoint
    from ciuic_dist.config import ConfigError
    from ciuic_dist.data.errors import DataError

    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{(text or '').strip()}\n")
        return 0
    try:
        work(arguments)
    except (ConfigError, DataError, CorruptCheckpoint) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
