"""What the data part raises."""

from __future__ import annotations


class DataError(ValueError):
    """The training data can't be used; the message names the file and says what to do."""
