"""All the architectures there are, by name."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.zoo import audio, decoders, encoder_decoders, encoders, multimodal, timm_models, vision
from benchmarks.zoo.entry import Entry

FAMILIES = (decoders, encoders, encoder_decoders, vision, audio, multimodal)


def catalogue() -> dict[str, Entry]:
    """Every entry that can run here, by name: timm's only where timm is installed."""
    families = (*FAMILIES, timm_models) if timm_models.installed() else FAMILIES
    entries = [entry for family in families for entry in family.entries()]
    table = {entry.name: entry for entry in entries}
    assert len(table) == len(entries), "two entries have one name"
    return table


def select(names: Iterable[str]) -> list[Entry]:
    """The entries with these names, all for none; ValueError for a name there is not."""
    table = catalogue()
    wanted = list(names)
    unknown = sorted(set(wanted) - set(table))
    if unknown:
        raise ValueError(f"no architecture is called {', '.join(unknown)}; there are {', '.join(sorted(table))}")
    return [table[name] for name in wanted] if wanted else list(table.values())
