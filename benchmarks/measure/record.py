"""How figures are kept: JSON lines and tables of Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def record(path: Path | None, kind: str, fields: dict[str, Any]) -> None:
    """Append one line to the file at `path`, whose folder is made; None: keep nothing."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind} | fields) + "\n")


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers; short rows are filled up."""
    lines = [
        titles,
        ["---", *["---:"] * (len(titles) - 1)],
        *([*row, *[""] * (len(titles) - len(row))] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def reason(error: str) -> str:
    """The line that says what went wrong, safe inside a table: the last that names an error."""
    lines = error.strip().splitlines()
    named = [line for line in lines if "Error: " in line]
    return (named or lines)[-1].replace("|", "/")
