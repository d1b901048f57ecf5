"""What goes wrong between ranks, in words that name the rank."""

from __future__ import annotations


class PeerLost(RuntimeError):
    """Another rank ended, failed or stopped answering while this one needed it."""


class Disagreement(RuntimeError):
    """Two ranks were started with different code, models or settings."""
