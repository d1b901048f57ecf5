"""What fits, how fast it goes and why, before the run."""

from __future__ import annotations

from ciuic_dist.plan.api import plan

__all__ = ["plan"]
