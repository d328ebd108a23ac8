"""Rows in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a headline and a line per row, the keys of the first row being the columns; numbers stand to the right."""
    if not rows:
        return []
    names = list(rows[0])
    table = [
        [name.upper().replace("_", " ") for name in names],
        *([_text(row[name]) for name in names] for row in rows),
    ]
    widths = [max(len(line[at]) for line in table) for at in range(len(names))]
    right = [all(type(row[name]) is int for row in rows) for name in names]
    return [
        "  ".join(
            f"{cell:>{w}}" if r else f"{cell:<{w}}" for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in table
    ]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)
