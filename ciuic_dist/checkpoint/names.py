"""The names of what a checkpoint of a sharded model holds.

``model.<parameter>``                       the master values, in the parameter's shape
``model.<buffer>``                          persistent buffers, rank 0's
``model.<module>._extra_state``             what the module's get_extra_state gives, rank 0's, in a tuple of one
``optimizer.state.<parameter>.<key>``       state with one value an element, in the parameter's shape
``optimizer.scalars.<parameter>.<key>``     other state
``optimizer.groups.<number>``               a group's settings
``optimizer.kind.<class>``                  nothing; the name says whose state it is
``extra``                                   a dict of what the caller adds, rank 0's
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

EXTRA: Final = "extra"
EXTRA_STATE: Final = "_extra_state"  # as torch names it in state dicts
GROUPS: Final = "optimizer.groups."
KIND: Final = "optimizer.kind."
MODEL: Final = "model."
SCALARS: Final = "optimizer.scalars."
STATE: Final = "optimizer.state."


def state_names(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The entry name of each key of each parameter's state."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if name.startswith((STATE, SCALARS)):
            parameter, _, key = name.split(".", 2)[2].rpartition(".")
            found.setdefault(parameter, {})[key] = name
    return found
