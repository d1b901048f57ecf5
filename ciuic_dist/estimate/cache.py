"""What was measured on this host before."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ciuic_dist.comm import groups
from ciuic_dist.comm.together import on_rank_zero
from ciuic_dist.planning.machine import Machine

_KIND = 3
"""Of what is measured, and how: grows where what was kept before is of no use."""


class Cache:
    """A file of this host for so many ranks and threads; every rank sees what rank 0 reads."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: None for ``$XDG_CACHE_HOME/ciuic_dist``."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._path = (folder or base / "ciuic_dist") / f"machine-{_identity()}.json"
        self.machine: Machine | None
        """As it was probed."""
        self.operators: dict[str, float]
        """Seconds by call."""
        self.drive: int | None
        """Where the machine's drive was measured, as `os.stat` numbers devices."""
        self.machine, self.operators, self.drive = on_rank_zero(self._read)

    def _read(self) -> tuple[Machine | None, dict[str, float], int | None]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return Machine(**content["machine"]), dict(content["operators"]), content["drive"]
        except (OSError, ValueError, TypeError, KeyError):
            return None, {}, None  # none yet, or of another version

    def keep(self, machine: Machine, operators: dict[str, float], drive: int | None = None) -> None:
        """Write both; rank 0 does. A folder that can't be written to is no error: it is measured again next time."""
        self.machine, self.operators, self.drive = machine, operators, drive
        content = {"machine": asdict(machine), "operators": operators, "drive": drive}
        if groups.rank() == 0:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
                draft.write_text(json.dumps(content), encoding="utf-8")
                draft.replace(self._path)
            except OSError as error:
                sys.stderr.write(f"what was measured of this machine isn't kept: {error}\n")


def _identity() -> str:
    """Equal where rates are."""
    hosts = groups.gather_objects(groups.host_identity())
    facts = (
        _KIND,
        platform.node(),
        platform.processor() or platform.machine(),
        os.cpu_count(),
        torch.__version__,
        torch.get_num_threads(),
        [hosts.index(host) for host in hosts],
        str(groups.device().type),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
