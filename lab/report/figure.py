"""Figures as data: what the browser draws when it comes into view (page.js), with the same in words and numbers.

Plotly reads tags in texts: page.js escapes those of bars, `plain` those of plotly's own JSON. Colours are names of
page.css (`--bad`), so that a figure fits the light and the dark page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PREPARE, SWITCH, HELPER, TRAFFIC, STARVED, ROLLBACK = range(6)
"""Kinds of bars: steps that prepare, steps that packets may notice, other threads, traffic, no CPU, rollbacks."""

_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the columns, those of them that hold numbers, and the cells as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of time in the row of that number, in milliseconds."""

    row: int
    start: float
    length: float
    kind: int
    text: str

    def to_json(self) -> list[Any]:
        return [self.row, self.start, self.length, self.kind, self.text]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars on a time line (a Gantt chart); `marks` are moments of which one wants to know, with what happened then.

    `counts` are drawn as a curve above the bars: the start, the length of a part, and a number for each part.
    """

    rows: Sequence[str]
    axis: str
    bars: Sequence[Bar]
    marks: Sequence[tuple[float, str]] = ()
    counts: Sequence[tuple[float, float, Sequence[int]]] = ()
    title: str = ""

    def to_json(self) -> dict[str, Any]:
        marks, counts = ([list(each) for each in values] for values in (self.marks, self.counts))
        bars = [bar.to_json() for bar in self.bars]
        texts = {"rows": list(self.rows), "axis": self.axis, "title": self.title}
        return {**texts, "bars": bars, "marks": marks, "counts": counts}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure under a title; `alt` says in a sentence what it shows, `tables` have its numbers.

    `content` is what page.js draws: Bars, or an object with plotly's `data` and `layout`. `height` is in pixels;
    a `folded` one is behind its title.
    """

    title: str
    alt: str
    content: Mapping[str, Any]
    tables: Sequence[Table] = ()
    height: int = 320
    note: str = ""
    folded: bool = False


def plain(text: str) -> str:
    """Return text in which plotly finds no tags."""
    return html.escape(text, quote=False)


def ms(ns: float, origin: float = 0) -> float:
    """Return nanoseconds since an origin as milliseconds, to the microsecond."""
    return round((ns - origin) / _NS_PER_MS, 3)


def number(value: float) -> str:
    """Return a number with as many digits as one can use."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def readable(value: float, unit: str) -> tuple[float, str]:
    """Return by what to multiply values like this one, and the unit they have then: seconds as one reads them."""
    if unit != "s" or value == 0:
        return 1, unit
    units = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
    return next(((factor, name) for factor, name in units if abs(value) * factor >= 1), (1e9, "ns"))


def duration(ns: float) -> str:
    """Return a time in words: `12.3 ms`, `4.50 s`."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(ns) >= factor:
            return f"{number(ns / factor)} {unit}"
    return f"{ns:.0f} ns"
