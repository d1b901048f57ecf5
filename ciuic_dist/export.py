"""Write what a run has trained as Hugging Face has it: ``python -m ciuic_dist.export run=runs/NAME [to=FOLDER]``.

``to`` (default: the run's own folder, ``export``) then holds safetensors, the config and, where the run has one, the
tokenizer: ``AutoModelForCausalLM.from_pretrained(to)`` loads it. It appears when it is complete; what is there already
stays, and is an error. ``checkpoint=FOLDER`` takes another one than the run's newest, from any number of ranks and
anything that torch.distributed.checkpoint writes. Memory: about three of the largest tensor.

Exit codes: 0 it is written; 2 the settings are wrong, or the checkpoint is corrupt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ciuic_dist.loop.command import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what ``arguments`` (default: the command line's) name; returns the exit code."""
    return run_command(_export, __doc__, arguments)


def _export(arguments: Sequence[str]) -> None:
    from ciuic_dist.checkpoint.folder import whole_or_absent
    from ciuic_dist.config import ConfigError, assignments
    from ciuic_dist.loop.trained import trained
    from ciuic_dist.models.published import publish

    given = assignments(arguments, ("run", "to", "checkpoint"))
    if "run" not in given:
        raise ConfigError("no run: add run=runs/<name>")
    run = Path(given["run"])
    to = Path(given.get("to", run / "export"))
    if to.exists():
        raise ConfigError(f"{to} is there already, and won't be overwritten: give to= another folder")
    found = trained(run, Path(given["checkpoint"]) if "checkpoint" in given else None)
    with whole_or_absent(to) as draft:
        written = publish(found.model, found.tensors, draft)
        found.tokenizer.save(draft)
        for file in draft.iterdir():
            _make_durable(file)
    size = f"{written.nbytes / 1e9:.3f} GB in {written.files} file{'s' if written.files > 1 else ''}"
    print(f"{to}: {written.tensors} tensors of {found.checkpoint}, {size}")


def _make_durable(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


if __name__ == "__main__":
    sys.exit(main())
