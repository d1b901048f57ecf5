"""Train a model: ``torchrun --nproc-per-node N -m ciuic_dist.train +model=deepseek [section.field=value ...]``.

Exit codes: 0 the run is finished; 75 a signal stopped it after a checkpoint, and the same command
goes on from there; 128 + its number a second signal ended it at once; 2 the settings or the data are wrong; 1 anything
else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job that ``arguments`` (default: the command line's) describe; returns the exit code."""
    from ciuic_dist.compose import compose, help_text
    from ciuic_dist.config import ConfigError

    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    try:
        config = compose(arguments)
    except ConfigError as error:
        return _complain(error, code=2)

    from ciuic_dist.checkpoint.errors import CorruptCheckpoint, NoRoom
    from ciuic_dist.comm.errors import Disagreement, PeerLost
    from ciuic_dist.data import DataError
    from ciuic_dist.loop.run import run
    from ciuic_dist.memory.budget import BudgetError
    from ciuic_dist.memory.tier import PageError
    from ciuic_dist.planning.plan import PlanError

    try:
        return run(config)
    except (ConfigError, DataError, BudgetError, PlanError) as error:
        return _complain(error, code=2)
    except (CorruptCheckpoint, NoRoom, Disagreement, PeerLost, PageError) as error:
        return _complain(error, code=1)


def _complain(error: Exception, code: int) -> int:
    """One line instead of a traceback: the user can act on these errors."""
    who = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(f"{who}error: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
