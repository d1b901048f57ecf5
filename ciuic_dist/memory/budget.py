"""What the user allows each tier to hold."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Final

from ciuic_dist.planning.activations import Way


class BudgetError(ValueError):
    """A budget that can't be read or can't be met; says what to write instead."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """One rank's part of each tier in bytes (None: no budget), and the folder of its NVMe tier.

    ``activations``: what becomes of them, None to decide.
    """

    device: int | None = None
    host: int | None = None
    nvme: int | None = None
    folder: Path | None = None
    activations: Way | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """A budget a tier: bytes, or text such as ``"20GiB"`` or ``"500 MB"``; for NVMe ``"/folder:500GiB"``.

    ``device`` is what each rank may use; ``host`` and ``nvme`` are what each host gives, in equal parts to its ranks.
    None: no limit on the device, so nothing is spilled from it, and the other two are for a plan to use; none of that
    tier for these. With the device's alone nothing is spilled either, and all has to fit.
    ``activations``: "keep", "offload" or "recompute" those of all units (where a unit can be recomputed); "auto":
    whatever fits best.
    """

    device: str | int | None = None
    host: str | int | None = None
    nvme: str | None = None
    activations: str = "auto"

    def resolve(self, ranks_on_host: int) -> Budgets:
        """The part of one of ``ranks_on_host`` ranks.

        Raises BudgetError where a text can't be read, or the folder is missing or can't be written to.
        """
        activations = _parse_way(self.activations)
        if activations is not None and self.device is None:
            raise BudgetError(f"memory.activations={self.activations} needs a budget: give memory.device as well")
        folder, nvme = (None, None) if self.nvme is None else _parse_nvme(self.nvme)
        return Budgets(
            device=None if self.device is None else parse_size(self.device, "memory.device"),
            host=None if self.host is None else parse_size(self.host, "memory.host") // ranks_on_host,
            nvme=None if nvme is None else nvme // ranks_on_host,
            folder=folder,
            activations=activations,
        )


def parse_size(text: str | int, key: str) -> int:
    """Bytes of ``"2GiB"`` (steps of 1024), ``"1.5GB"`` (of 1000) or ``4096``; a part of a byte counts as one.

    Raises BudgetError, which names ``key``, for anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise BudgetError(f"{key}={text!r} is no size: write a number and a unit, such as 20GiB, 500MB or 1.5TB")
    whole, number, unit = match.groups()
    return int(whole) if whole else ceil(Fraction(number) * _UNITS[unit.lower()])


_UNITS: Final = {
    unit: base**power
    for base, suffix in ((1024, "ib"), (1000, "b"))
    for power, unit in enumerate((prefix + suffix for prefix in "kmgt"), start=1)
}
_SIZE: Final = re.compile(r"\s*(?:([0-9]+)\s*B?|([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B))\s*", re.IGNORECASE)


def _parse_way(text: str) -> Way | None:
    if text == "auto":
        return None
    try:
        return Way(text)
    except ValueError:
        raise BudgetError(f"memory.activations={text!r} must be one of auto, {', '.join(Way)}") from None


def _parse_nvme(text: str) -> tuple[Path, int]:
    name, _, size = str(text).rpartition(":")
    if not name.strip() or not size.strip():
        raise BudgetError(f"memory.nvme={text!r} needs a folder and a size: write /folder:500GiB")
    folder = Path(name.strip()).expanduser().absolute()
    if not folder.is_dir():
        raise BudgetError(f"memory.nvme: there is no folder {folder}: make it, or name another one")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BudgetError(f"memory.nvme: {folder} can't be written to: change its mode, or name another folder")
    return folder, parse_size(size, "memory.nvme")
