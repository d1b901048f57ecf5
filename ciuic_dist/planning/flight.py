"""How much is on its way at a time: what the engine does and what plans count with."""

from __future__ import annotations

from typing import Final

UNITS_IN_FLIGHT: Final = 3
"""Under a budget the largest unit, so often, is the least that parameters need: in use, coming, leaving."""
MAILBOX_SLOTS: Final = 2
"""That the blocks' flats take in turn: one is written while the one before is read."""
REDUCTIONS_IN_FLIGHT: Final = 2
"""Between devices, beside the unit whose gradients come: one on the wire while the next unit's backward computes."""
DRIVE_THREADS: Final = 4
"""What an NVMe drive takes to be busy with large pages."""
