"""Plan a run: ``python -m ciuic_dist.plan +model=llama model.size=7b machine=8xh100 [section.field=value ...]``.

Settings are those of ``ciuic_dist.train``. What isn't given of ``data.sequence_length``, ``train.global_batch``,
``train.precision``, ``engine.stage`` and ``train.micro_batch`` is chosen for the machine.
``--json`` prints the plan as JSON, or why there is none; ``--picture FILE.png`` draws a step.
``machine=probe`` and no model: measures this machine anew, and prints it as a YAML file of one's own has it, or JSON.

Exit codes: 0 there is a plan; 2 the settings are wrong, or nothing fits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ciuic_dist.planning.machine import Machine


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan that ``arguments`` (default: the command line's) ask for; returns the exit code."""
    from ciuic_dist.comm import groups
    from ciuic_dist.config import ConfigError
    from ciuic_dist.estimate.here import measure_anew
    from ciuic_dist.memory.budget import BudgetError
    from ciuic_dist.plan.command import help_text, parse, planned, refusal

    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text(__doc__ or ""))
        return 0
    try:
        command = parse(arguments)
        if command.machine is None:
            groups.init()
        if command.config is None:
            return _show(measure_anew(), as_json=command.json)
        made = planned(command.config, command)
    except (ConfigError, BudgetError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if "--json" in arguments and not groups.rank():
            print(refusal(error))
        return 2
    if groups.rank():
        return 0
    print(made.plan.to_json() if command.json else made.plan)
    if command.picture is not None:
        from ciuic_dist.estimate.picture import draw

        draw(made.plan, made.profile, Path(command.picture))
    return 0


def _show(machine: Machine, *, as_json: bool) -> int:
    import json
    from dataclasses import asdict

    from ciuic_dist.comm import groups
    from ciuic_dist.estimate.machines import text_of

    if groups.rank() == 0:
        fields = {key: value for key, value in asdict(machine).items() if key != "name"}
        print(json.dumps(fields) if as_json else text_of(machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
